"""Norms of layers: of each matrix of a stack, or of a whole leaf."""

from typing import Any

import jax
import jax.numpy as jnp

from optlab import trees
from optlab.links import _arrays


def layer_axes(
    tree: Any, views: Any, *, vectors: bool = False
) -> list[tuple[int, ...] | None]:
    """Lists which axes make a layer of each leaf of a tree.

    Args:
      tree: Tree of arrays.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      vectors: Whether leaves without a view are layers too.

    Returns:
      For each leaf the axes of one matrix, so that all others are a stack of layers.
      For a leaf without a view (a bias, the scale of a norm, a scalar) None, or with
      `vectors` its last axis, if it has one.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links, trees
      >>> params = {"kernel": jnp.ones((3, 4, 6)), "scale": jnp.ones(6)}
      >>> links.layer_axes(params, trees.matrix_views)
      [(1, 2), None]

    Source:
      Written for this library.
    """
    known = trees.views_by_path(tree, views)
    axes = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        view, rank = known.get(trees.path_string(path)), jnp.ndim(leaf)
        if view is not None:
            named = (*view.reduction, *view.output)
            axes.append(tuple(sorted(axis % rank for axis in named)))
        else:
            axes.append(tuple(range(rank)[-1:]) if vectors else None)
    return axes


def trust_ratios(
    axes: list[tuple[int, ...] | None],
    weights: Any,
    *parts: Any,
    coefficient: float | jax.Array = 1.0,
) -> Any:
    """Compares the length of each layer's weights with that of its update.

        ratio = coefficient ||w|| / (||u|| + ||v|| + ...)

    Args:
      axes: For each leaf what `layer_axes` lists.
      weights: Tree of arrays w.
      *parts: Trees of the same structure: u, v, ...
      coefficient: Factor on the ratio.

    Returns:
      Tree of ratios, with axes of size 1 in place of a layer's own. 1 where w or all
      parts are zero, and for leaves that are no layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> w, u = jnp.array([[3.0], [4.0]]), jnp.array([[0.0], [0.5]])
      >>> print(links.trust_ratios([(0, 1)], w, u))
      [[10.]]

    Source:
      You, Gitman, Ginsburg, 2017, arXiv:1708.03888.
    """
    leaves, structure = jax.tree.flatten(weights)
    columns = [structure.flatten_up_to(part) for part in parts]

    def ratio(own: tuple[int, ...] | None, w: jax.Array, *terms: jax.Array) -> Any:
        if own is None:
            return jnp.ones((), w.dtype)
        length, *lengths = (_arrays.norm_over(x, own) for x in (w, *terms))
        below = sum(lengths, jnp.zeros((), w.dtype))
        known = (length > 0) & (below > 0)
        found = coefficient * length / jnp.where(known, below, 1)
        return jnp.where(known, found, 1).astype(w.dtype)

    rows = zip(axes, leaves, *columns, strict=True)
    return structure.unflatten([ratio(*row) for row in rows])
