"""Which leaves are matrices, and which are the rest."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optlab.trees import _matrices, _paths, _views


def labels(views: _views.Views) -> Any:
    """Labels each leaf 'matrix' or 'rest', for `optax.partition`.

    Args:
      views: Tree of views, as from `matrix_views`.

    Returns:
      Tree of the same structure with a string at each leaf.

    Example:
      >>> from optlab import trees
      >>> trees.labels({"kernel": trees.MatrixView((0,), (1,)), "bias": None})
      {'bias': 'rest', 'kernel': 'matrix'}
    """
    return jax.tree.map(
        lambda view: "rest" if view is None else "matrix", views, is_leaf=_is_view
    )


def _is_view(x: Any) -> bool:
    return x is None or isinstance(x, _matrices.MatrixView)


def routing_table(params: Any, views: _views.Views | None = None) -> str:
    """Writes how each leaf is routed: path, shape, group and matrix view.

    Args:
      params: Tree of arrays or `jax.ShapeDtypeStruct`.
      views: Tree of views; None means `matrix_views(params)`.

    Returns:
      A table, one line a leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> print(trees.routing_table({"up": {"kernel": jnp.ones((4, 8)),
      ...                                   "bias": jnp.ones(8)}}))
      path       shape   group   view
      up/bias    (8,)    rest    -
      up/kernel  (4, 8)  matrix  1 x (4, 8): in (0,), out (1,)
    """
    views = _views.matrix_views(params) if views is None else views
    flat_views = jax.tree.leaves(views, is_leaf=_is_view)
    rows = [("path", "shape", "group", "view")]
    for (path, leaf), view in zip(
        jax.tree_util.tree_leaves_with_path(params), flat_views, strict=True
    ):
        shape = jnp.shape(leaf)
        if view is None:
            rows.append((_paths.path_string(path), str(shape), "rest", "-"))
            continue
        m = math.prod(shape[axis] for axis in view.reduction)
        n = math.prod(shape[axis] for axis in view.output)
        stack = math.prod(
            shape[axis] for axis in _matrices.batch_axes(view, len(shape))
        )
        text = f"{stack} x ({m}, {n}): in {view.reduction}, out {view.output}"
        text += f", split {view.split}" if view.split else ""
        rows.append((_paths.path_string(path), str(shape), "matrix", text))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows
    )
