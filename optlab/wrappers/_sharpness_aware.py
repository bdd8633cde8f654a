"""Sharpness-aware steps: the gradient that an optimizer gets is that of a neighbour."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import estimators, links


def sharpness_aware(
    inner: optax.GradientTransformation,
    *,
    rho: float | jax.Array = 0.05,
    adaptive: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Hands an optimizer the gradient at the worst point within a radius.

    Minima that such steps find are flat: the loss stays low around them.

        e = rho g / ||g||                             norm over the whole tree
        u = inner(grad loss(w + e))                   applied to w

    Updates need `loss_fn` (or `value_fn`), the loss of this batch as a function of the
    parameters; the gradient there is taken inside. One update is one step of the inner
    transformation and of its schedules. What the loss returns beside the number, such
    as batch statistics, is not kept: then, or for groups of a batch, use
    `estimators.sharpness_aware_value_and_grad` and the optimizer without this wrapper.
    For small batches that make one step, put them inside, as in
    `sharpness_aware(optax.MultiSteps(inner, 4).gradient_transformation())`.

    Args:
      inner: The optimizer, such as `optax.adamw(1e-3)`.
      rho: Radius, 0 or more; 0 gives the inner steps.
      adaptive: Whether the radius is in units of each weight; it is then near 0.5.

    Returns:
      A transformation with the inner one's state, float32 or wider. Updates keep their
      dtype. Costs one gradient more a step. A gradient that is zero or not finite gives
      the inner step.

    Raises:
      TypeError: If inner is no transformation, or an update has neither `loss_fn` nor
        `value_fn`, or one that is no function, or no parameters.
      ValueError: If rho is negative, or `optax.masked` or `optax.partition` hides
        parameters that the loss needs: put them inside.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> loss = lambda w: 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
      >>> tx, w = wrappers.sharpness_aware(optax.sgd(0.01), rho=0.1), jnp.ones(2)
      >>> updates, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, loss_fn=loss)
      >>> [f"{entry:.4f}" for entry in w + updates]
      ['0.9899', '0.8900']

    Source:
      Foret et al., 2020, arXiv:2010.01412; see
      `estimators.sharpness_aware_value_and_grad`. Differs from `optax.contrib.sam`: a
      zero gradient is no NaN, both gradients are of one batch and one call, schedules
      count calls, and there is the adaptive radius.
    """
    links.require_nonnegative("sharpness_aware", rho=rho)
    links.require_transformation("sharpness_aware", inner)
    inner = links.in_float32(inner)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        loss = _loss(params, extra_args)
        scale = jax.tree.map(jnp.abs, params) if adaptive else None
        found = estimators.perturbed_value_and_grad(
            loss,
            params,
            lambda _: estimators.perturbation_along(updates, rho, scale=scale),
        )
        grads = jax.tree.map(lambda g, u: g.astype(u.dtype), found.grads, updates)
        return inner.update(grads, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _loss(params: Any, extra_args: Mapping[str, Any]) -> Any:
    """Finds the loss among the arguments of an update."""
    loss = extra_args.get("loss_fn")
    loss = extra_args.get("value_fn") if loss is None else loss
    if loss is None or params is None:
        raise TypeError(
            "sharpness_aware: an update needs the loss and the parameters:"
            " tx.update(grads, state, params, loss_fn=loss), loss from parameters to"
            " the loss on this batch"
        )

    if not callable(loss):
        raise TypeError(
            "sharpness_aware: loss_fn is the loss as a function of the parameters, not"
            f" its value; got {type(loss).__name__}"
        )

    def is_masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
        raise ValueError(
            "sharpness_aware: some parameters are hidden by optax.masked or"
            " optax.partition, so loss_fn cannot be evaluated here. Put sharpness_aware"
            " around them: sharpness_aware(optax.masked(inner, mask))."
        )
    return loss
