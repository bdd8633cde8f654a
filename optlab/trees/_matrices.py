"""How an array is read as a stack of matrices, and written back."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """How an array is read as a stack of matrices of shape (fan-in, fan-out).

    Attributes:
      reduction: Axes that a layer sums over; merged, in order, to the m rows.
      output: Axes that a layer puts out; merged, in order, to the n columns.
      split: Sizes into which the columns are cut, each piece a matrix of its own, for
        fused projections; None to leave them whole. All other axes are batch.
    """

    reduction: tuple[int, ...]
    output: tuple[int, ...]
    split: tuple[int, ...] | None = None


def checked(who: str, shape: tuple, view: MatrixView) -> MatrixView:
    """Makes axes non-negative and checks that the view fits the shape."""
    axes, rank = (*view.reduction, *view.output), len(shape)
    inside = all(-rank <= axis < rank for axis in axes)
    axes = tuple(axis % rank for axis in axes) if inside else axes
    twice = len(set(axes)) < len(axes)
    if not inside or twice or not view.reduction or not view.output:
        raise ValueError(
            f"{who} has shape {shape}, which the view {view} does not fit: each of"
            " reduction and output needs an axis, and no axis may be named twice."
        )
    reduction, output = axes[: len(view.reduction)], axes[len(view.reduction) :]
    columns = math.prod(shape[axis] for axis in output)
    pieces = view.split or (columns,)
    if sum(pieces) != columns or min(pieces) < min(1, columns):
        raise ValueError(
            f"{who} has shape {shape} and {columns} columns, which split={view.split}"
            " must cut into pieces of one or more."
        )
    return MatrixView(reduction, output, view.split)


def batch_axes(view: MatrixView, rank: int) -> tuple[int, ...]:
    named = (*view.reduction, *view.output)
    return tuple(axis for axis in range(rank) if axis not in named)


def to_matrices(x: jax.Array, view: MatrixView) -> tuple[jax.Array, ...]:
    """Reads an array as stacks of matrices, fan-in by fan-out.

    Args:
      x: Array of any shape that the view fits.
      view: Which axes are rows, which are columns, and how columns are split.

    Returns:
      One array of shape (k, m, n) for each piece of `view.split`, or one in all; k is
      the product of the batch axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> query = jnp.ones((6, 2, 3))  # (d, heads, head_dim)
      >>> trees.to_matrices(query, trees.MatrixView((0,), (1, 2)))[0].shape
      (1, 6, 6)
      >>> trees.to_matrices(query, trees.MatrixView((0,), (2,)))[0].shape  # per head
      (2, 6, 3)
    """
    view = checked("trees.to_matrices: the array", x.shape, view)
    groups = (batch_axes(view, x.ndim), view.reduction, view.output)
    order = tuple(axis for group in groups for axis in group)
    moved = jnp.transpose(x, order)
    sizes = [math.prod(x.shape[axis] for axis in group) for group in groups]
    sharding = jax.typeof(x).sharding
    names = [jax.tree.leaves([sharding.spec[axis] for axis in g]) for g in groups]
    stack = _reshaped(moved, sizes, sharding, [tuple(group) or None for group in names])
    if view.split is None:
        return (stack,)
    edges = [sum(view.split[:i]) for i in range(1, len(view.split))]
    return tuple(jnp.split(stack, edges, axis=-1))


def _reshaped(x: jax.Array, shape: Sequence[int], sharding: Any, spec: Any):
    """Reshapes; on a mesh with Explicit axes the placement has to be told."""
    if not any(spec):
        return x.reshape(shape)
    place = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.lax.reshape(x, shape, out_sharding=place)


def from_matrices(
    matrices: Sequence[jax.Array],
    view: MatrixView,
    shape: tuple[int, ...],
    sharding: Any = None,
) -> jax.Array:
    """Undoes `to_matrices`.

    Args:
      matrices: The stacks, shape (k, m, n) each.
      view: The view that made them.
      shape: Shape of the original array.
      sharding: On a mesh with Explicit axes, the original's `jax.typeof(x).sharding`.

    Returns:
      Array of that shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> x, view = jnp.arange(24.0).reshape(2, 3, 4), trees.MatrixView((1,), (0,))
      >>> stacks = trees.to_matrices(x, view)
      >>> bool((trees.from_matrices(stacks, view, x.shape) == x).all())
      True
    """
    stack = matrices[0] if view.split is None else jnp.concatenate(matrices, axis=-1)
    view = checked("trees.from_matrices: the array", shape, view)
    order = (*batch_axes(view, len(shape)), *view.reduction, *view.output)
    spec = [sharding.spec[axis] for axis in order] if sharding else []
    moved = _reshaped(stack, [shape[axis] for axis in order], sharding, spec)
    return jnp.transpose(moved, sorted(range(len(shape)), key=order.__getitem__))
