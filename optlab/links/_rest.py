"""Matrices go one way and all other leaves another."""

from collections.abc import Callable
from typing import Any

import optax

from optlab import trees


def matrices_and_rest(
    matrices: Callable[[Any], optax.GradientTransformation],
    rest: optax.GradientTransformation | None,
    views: Any,
) -> optax.GradientTransformationExtraArgs:
    """Sends the matrices of a model to one transformation and the rest to another.

    The views are found on the whole tree: inside the partition the leaves of the rest
    are hidden, and how a leaf is read may depend on its neighbours.

    Args:
      matrices: From the tree of views to the transformation of the matrices.
      rest: Transformation of all other leaves, its own learning rate included; None
        leaves all to the first, which must refuse what is no matrix.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.

    Returns:
      The transformation of the whole tree.

    Raises:
      TypeError: If rest is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import links, trees
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> tx = links.matrices_and_rest(
      ...     lambda views: optax.scale(2.0), optax.scale(3.0), trees.matrix_views
      ... )
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> print(updates["bias"])
      [3. 3.]

    Source:
      Written for this library, on `optax.partition`.
    """
    if rest is not None and not hasattr(rest, "update"):
        raise TypeError(
            "rest must be a transformation with its own learning rate, such as"
            f" rest=optlab.optimizers.adamw(3e-4), got {rest!r}"
        )
    alone = matrices(views)  # built even beside a rest: it checks the arguments now
    if rest is None:
        return optax.with_extra_args_support(alone)

    def routed(tree: Any) -> optax.GradientTransformationExtraArgs:
        found = views(tree) if callable(views) else views
        return optax.partition(
            {"matrix": matrices(found), "rest": rest}, trees.labels(found)
        )

    def init(params: optax.Params) -> Any:
        return routed(params).init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        return routed(updates).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)
