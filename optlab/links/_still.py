"""Matrices without a gradient of their own stay where they are."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import trees
from optlab.links import _arrays


def hold_still(
    core: optax.GradientTransformation,
    min_norm: float | jax.Array | None,
    views: Any,
) -> optax.GradientTransformationExtraArgs:
    """Gives a zero update to every matrix whose gradient is too small to mean anything.

    A polar factor has one size however small its matrix is. So an expert that no token
    has reached, with a gradient of zero, is moved a full step by its momentum, and a
    dead layer is driven by rounding errors. With this link, matrix by matrix,

        u = 0   where ||g||_F <= min_norm,   else the core's update

    The core sees every gradient, and its momentum goes on; weight decay, a later link,
    still acts.

    Args:
      core: The direction, without learning rate and sign.
      min_norm: Largest Frobenius norm, in units of the gradient, of a matrix that is
        held; 0 holds those with a gradient of exactly zero; None holds none.
      views: Tree of `trees.MatrixView`, or a function from the tree to it; leaves
        without one are never held. Matrices of a stack are held one by one, the pieces
        of a split one together.

    Returns:
      The transformation, with the core's state. A gradient that is not finite is not
      held.

    Raises:
      ValueError: If min_norm is a negative number.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import links, trees
      >>> tx = links.hold_still(optax.trace(0.5), 0.0, trees.matrix_views)
      >>> g = {"experts": {"kernel": jnp.ones((2, 1, 1))}}
      >>> _, state = tx.update(g, tx.init(g))
      >>> g = {"experts": {"kernel": jnp.array([[[1.0]], [[0.0]]])}}
      >>> updates, _ = tx.update(g, state)
      >>> print(updates["experts"]["kernel"].ravel())
      [1.5 0. ]

    Source:
      Written for this library.
    """
    core = optax.with_extra_args_support(core)
    if min_norm is None:
        return core
    if isinstance(min_norm, float | int) and min_norm < 0:
        raise ValueError(f"hold_still: min_norm must be 0 or more, got {min_norm}")

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        known = trees.views_by_path(updates, views)

        def held(path: Any, g: jax.Array, u: jax.Array) -> jax.Array:
            view = known.get(trees.path_string(path))
            if view is None or not g.size:
                return u
            still = _arrays.norm_over(g, (*view.reduction, *view.output)) <= min_norm
            return jnp.where(still, jnp.zeros_like(u), u)

        out, state = core.update(updates, state, params, **extra_args)
        return jax.tree_util.tree_map_with_path(held, updates, out), state

    return optax.GradientTransformationExtraArgs(core.init, update)
