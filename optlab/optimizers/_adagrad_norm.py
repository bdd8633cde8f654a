"""AdaGrad-Norm: one rate for all weights, divided by all gradients so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByAdagradNormState(NamedTuple):
    """State of `scale_by_adagrad_norm`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      norm: Root of the sum of all squares so far, shape (), float32 or wider.
    """

    count: jax.Array
    norm: jax.Array


def scale_by_adagrad_norm(
    *, eps: float | jax.Array = 1e-10, initial_norm: float | jax.Array = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Divides gradients by the length of all of them together.

        b_t^2 = b_{t-1}^2 + ||g_t||^2,   b_0 = initial_norm
        u_t = g_t / (b_t + eps)

    with the norm over the whole tree. b itself is kept, not its square, which would
    overflow where gradients do not.

    Args:
      eps: Added to b, in units of the gradient.
      initial_norm: First b, alike; it makes the first steps shorter.

    Returns:
      A transformation without learning rate and sign. No entry moves at a zero
      gradient. One that is not finite moves nothing, and b forgets it.

    Raises:
      ValueError: If eps or initial_norm is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_adagrad_norm()
      >>> g = {"w": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> print(updates["w"], updates["b"], state.norm)
      [0.6] [0.8] 5.0

    Source:
      See `adagrad_norm`.
    """
    who = "scale_by_adagrad_norm"
    links.require_nonnegative(who, eps=eps, initial_norm=initial_norm)

    def init(params: optax.Params) -> ScaleByAdagradNormState:
        del params
        first = jnp.array(initial_norm, dtype=float)
        return ScaleByAdagradNormState(jnp.zeros((), jnp.int32), first)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdagradNormState]:
        del params, extra_args
        length = links.tree_norm(updates)
        sound = jnp.isfinite(length)
        b = jnp.hypot(state.norm, jnp.where(sound, length, 0))
        size = b + eps
        size = jnp.where(size > 0, size, 1)

        def direction(g: jax.Array) -> jax.Array:
            return jnp.where(sound, links.widen(g) / size, 0).astype(g.dtype)

        count = jnp.asarray(optax.safe_increment(state.count))
        b = b.astype(state.norm.dtype)
        return jax.tree.map(direction, updates), ScaleByAdagradNormState(count, b)

    return optax.GradientTransformationExtraArgs(init, update)


def adagrad_norm(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    eps: float | jax.Array = 1e-10,
    initial_norm: float | jax.Array = 0.0,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent whose rate falls as gradients have been met.

    The update u_t is that of `scale_by_adagrad_norm`, then

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    The first step has the length of the rate, over all weights together: the rate is a
    distance, and gradients may have any unit. Under constant gradients steps shrink as
    1 / sqrt(t); where gradients vanish, as they do without noise, the rate settles.
    State: one number.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      eps: Added to b, in units of the gradient.
      initial_norm: First b, alike.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; updates keep their dtype.

    Raises:
      ValueError: As `scale_by_adagrad_norm`, or if an update comes without the
        parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx, w = optimizers.adagrad_norm(0.5), jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> for _ in range(3):
      ...     updates, state = tx.update(w, state, w)
      ...     print(f"{jnp.linalg.norm(updates):.3f}")
      ...     w = w + updates
      0.500
      0.334
      0.263

    Source:
      R. Ward, X. Wu, L. Bottou, "AdaGrad stepsizes", 2018, arXiv:1806.01811, with eps
      and without a first b as in the code of T. Lau, H. Liu, M. Kolar, "AdAdaGrad",
      2024, arXiv:2402.11215. Differs from that code, which keeps one sum for each row
      of a matrix and each entry of a vector, not one for all, and whose weight decay
      adds the gradient once more, not the weights. UNVERIFIED: the first paper's
      equation is from memory.
    """
    core = scale_by_adagrad_norm(eps=eps, initial_norm=initial_norm)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
