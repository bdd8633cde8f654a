"""Which axes of leaves are channels, and sums over axes of many leaves together."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optlab import trees

Axes = tuple[int, ...]


def channel_axes(
    who: str, tree: Any, channel_axis: int | Axes | None, views: Any
) -> list[tuple[Axes, Axes] | None]:
    """Lists for each leaf the axes that a layer sums over and those of its channels.

    Args:
      who: Name of the method, for errors.
      tree: Tree of arrays.
      channel_axis: Axis (or axes) of the channels, the same for every leaf of two axes
        or more; None goes by views.
      views: Tree of `trees.MatrixView` or a function to it: output axes are channels.

    Returns:
      For each leaf the axes to sum over and those of the channels, counted from the
      end, so that leading axes do not shift them; None for a leaf without channels.

    Raises:
      ValueError: If a leaf has no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links, trees
      >>> tree = {"kernel": jnp.ones((3, 4, 6)), "bias": jnp.ones((3, 6))}
      >>> links.channel_axes("me", tree, None, trees.matrix_views)
      [None, ((-2,), (-1,))]
      >>> links.channel_axes("me", tree, 0, None)
      [((-1,), (-2,)), ((-2, -1), (-3,))]

    Source:
      Written for this library.
    """
    known = trees.views_by_path(tree, views) if channel_axis is None else {}
    out = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path, rank = trees.path_string(key_path), jnp.ndim(leaf)
        view = known.get(path)
        axes = view and (view.reduction, view.output)
        if channel_axis is not None and rank > 1:
            named = channel_axis if isinstance(channel_axis, tuple) else (channel_axis,)
            output = {axis % rank for axis in named if -rank <= axis < rank}
            rest = tuple(axis for axis in range(rank) if axis not in output)
            if len(output) < len(named) or not rest or not named:
                raise ValueError(
                    f"{who}: leaf {path!r} has shape {jnp.shape(leaf)};"
                    f" channel_axis={channel_axis} must name axes of it, none twice,"
                    " and leave one to sum over. Name the axes leaf by leaf:"
                    " channel_axis=None, views=trees.matrix_views(params, rules=[...])"
                )
            axes = (rest, tuple(output))
        out.append(
            axes and tuple(tuple(a % rank - rank for a in part) for part in axes)
        )
    return out


def reduce_alike(
    reduce: Callable[[jax.Array, Axes], jax.Array],
    leaves: Sequence[jax.Array],
    axes: Sequence[Axes | None],
) -> list[jax.Array | None]:
    """Reduces arrays over axes of their own, all of one kind together.

    On a mesh the sums of arrays alike then travel in one piece.

    Args:
      reduce: From a stack of arrays and axes to an array with these axes of size 1.
      leaves: Arrays.
      axes: For each the axes to reduce, counted from the end; None for none.

    Returns:
      The results, None for arrays without entries and those that are not reduced.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> pair = [jnp.array([3.0, 4.0]), jnp.ones(2)]
      >>> links.reduce_alike(links.norm_over, pair, [(-1,), None])
      [Array([5.], dtype=float32), None]

    Source:
      Written for this library.
    """
    groups: dict[Any, list[int]] = {}
    for index, (leaf, over) in enumerate(zip(leaves, axes, strict=True)):
        if over is not None and leaf.size:
            groups.setdefault((jax.typeof(leaf), over), []).append(index)
    results: list[jax.Array | None] = [None] * len(leaves)
    for (_, over), members in groups.items():
        found = reduce(jnp.stack([leaves[index] for index in members]), over)
        for place, index in enumerate(members):
            results[index] = found[place]
    return results
