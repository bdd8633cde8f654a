"""From a direction to a step: weight decay, learning rate and sign."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab.links import _arrays, _rate

# When weights decay: with the step, as in AdamW; what the step has left; or what the
# step has left and by a division, as a proximal step of the squared norm does.
DECAY_ORDERS = ("together", "after", "proximal")


def add_decayed_weights(
    weight_decay: float | jax.Array, mask: Any = None, *, cautious: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Adds decoupled weight decay, on request only where it helps the update.

        u_i = u_i + weight_decay w_i                          plain
        u_i = u_i + weight_decay w_i   where u_i w_i >= 0     cautious

    Updates have no sign yet: where u_i w_i > 0 the step -eta u_i shrinks the weight, as
    decay does. Elsewhere the optimizer wants the weight to grow, and cautious decay
    does not hold it back; it changes how fast training gets there, not the stationary
    points of the loss.

    Args:
      weight_decay: Factor on the weights.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      cautious: Whether to decay only as above.

    Returns:
      A transformation that needs the parameters and keeps no state.

    Raises:
      ValueError: If the parameters are missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> tx = links.add_decayed_weights(0.5, cautious=True)
      >>> w, u = jnp.array([2.0, 2.0]), jnp.array([1.0, -1.0])
      >>> print(tx.update(u, tx.init(w), w)[0])
      [ 2. -1.]

    Source:
      I. Loshchilov, F. Hutter, 2017, arXiv:1711.05101 (plain, as Optax has it); L. Chen
      et al., "Cautious weight decay", 2025, arXiv:2510.12402.
    """

    def where_it_helps(u: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.where(u * w >= 0, u + weight_decay * w, u).astype(u.dtype)

    if cautious:
        link = optax.stateless(lambda u, w: jax.tree.map(where_it_helps, u, w))
        link = link if mask is None else optax.masked(link, mask)
    else:
        link = optax.add_decayed_weights(weight_decay, mask)
    decay = optax.with_extra_args_support(link)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(
                "add_decayed_weights: needs the parameters: update(..., params)"
            )
        return decay.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(decay.init, update)


def descend(
    direction: optax.GradientTransformation,
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    cautious: bool = False,
    decay_order: str = "together",
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer of a direction: what every alias does behind its core.

        w <- w - eta (u + weight_decay w)                      (together)
        w <- w - eta u,   then w <- w - eta weight_decay w     (after)
        w <- (w - eta u) / (1 + eta weight_decay)              (proximal)

    Args:
      direction: The core, without learning rate and sign. It and all that follows run
        in float32 where updates or parameters are narrower.
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      weight_decay: Decoupled decay.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      cautious: Whether to decay only where it helps, see `add_decayed_weights`.
      decay_order: 'together', 'after' or 'proximal'.

    Returns:
      The optimizer; the core's state is the first part of its state.

    Raises:
      ValueError: If the order is unknown.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import links
      >>> w = jnp.ones(1)
      >>> for order in links.DECAY_ORDERS:
      ...     tx = links.descend(
      ...         optax.identity(), 0.1, weight_decay=0.5, decay_order=order
      ...     )
      ...     print(f"{tx.update(w, tx.init(w), w)[0][0]:.3f}")
      -0.150
      -0.145
      -0.143

    Source:
      Written for this library.
    """
    if decay_order not in DECAY_ORDERS:
        raise ValueError(
            f"links.descend: decay_order must be one of {DECAY_ORDERS}, got"
            f" {decay_order!r}"
        )
    decay = add_decayed_weights(weight_decay, mask, cautious=cautious)
    rate = _rate.scale_by_learning_rate(learning_rate)
    if decay_order == "together":
        return _arrays.in_float32(optax.chain(direction, decay, rate))
    last = decay_after_rate(
        rate, decay, _proximal if decay_order == "proximal" else None
    )
    return _arrays.in_float32(optax.chain(direction, last))


def _proximal(c: jax.Array, w: jax.Array, step: jax.Array) -> jax.Array:
    return c / (1 - c) * (w + step)


def decay_after_rate(
    rate: optax.GradientTransformationExtraArgs,
    decay: optax.GradientTransformationExtraArgs,
    shrink: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies by the rate, then decays at the same rate what the step has left.

    Args:
      rate: `scale_by_learning_rate`.
      decay: `add_decayed_weights`.
      shrink: From c = -eta weight_decay, or 0 where nothing decays, weights w and step
        to what is added to the step; None for c (w + step).

    Returns:
      A transformation that comes last.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> parts = links.scale_by_learning_rate(0.1), links.add_decayed_weights(0.5)
      >>> tx = links.decay_after_rate(*parts, lambda c, w, step: 10 * c * w)
      >>> w = jnp.ones(1)
      >>> print(tx.update(w, tx.init(w), w)[0])
      [-0.6]

    Source:
      Written for this library.
    """

    def init(params: optax.Params) -> Any:
        return decay.init(params), rate.init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        step, rate_state = rate.update(updates, state[1])
        at = params
        if params is not None and shrink is None:
            at = jax.tree.map(jnp.add, params, step)
        elif params is not None:
            at = jax.tree.map(jnp.ones_like, params)
        pull = jax.tree.map(jnp.zeros_like, step)
        pull, decay_state = decay.update(pull, state[0], at)
        # The same state: both move at the rate of this step.
        pull, _ = rate.update(pull, state[1])
        if shrink is not None:
            pull = jax.tree.map(shrink, pull, params, step)
        return jax.tree.map(jnp.add, step, pull), (decay_state, rate_state)

    return optax.GradientTransformationExtraArgs(init, update)
