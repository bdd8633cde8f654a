"""Joins matrices of one shape, so that a kernel runs once for each shape."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.trees import _matrices, _paths, _views


def stack_by_shape(
    arrays: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], list[jax.Array]]]:
    """Joins stacks of equal matrices, so that a kernel runs once for each shape.

    The size of a compiled program then depends on the number of shapes, not of layers.

    Args:
      arrays: Arrays of shape (k_i, ...). Those that agree in all but the first axis, in
        dtype and, on a mesh with Explicit axes, in placement are joined; a stack whose
        first axis is sharded stays alone, for joining would move it between devices.

    Returns:
      The joined arrays, and the function that cuts such a list back into the order and
      the sizes of `arrays`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> parts = [jnp.ones((1, 2, 3)), jnp.ones((4, 2, 3)), jnp.ones((1, 5, 5))]
      >>> stacks, unstack = trees.stack_by_shape(parts)
      >>> [s.shape for s in stacks], [p.shape for p in unstack(stacks)]
      ([(5, 2, 3), (1, 5, 5)], [(1, 2, 3), (4, 2, 3), (1, 5, 5)])
    """
    stacks, unstack, _ = with_places(arrays)
    return stacks, unstack


def with_places(
    arrays: Sequence[jax.Array], joined: bool = True
) -> tuple[list[jax.Array], Callable[..., list[jax.Array]], list[np.ndarray]]:
    """Does as `stack_by_shape`, and tells the place of each row.

    A place counts the matrices of one shape, in the order of `arrays`, wherever they
    lie: it is the same on all meshes.
    """
    groups: dict[Any, list[int]] = {}
    counts: dict[Any, int] = collections.defaultdict(int)
    places = []
    for index, x in enumerate(arrays):
        sharding = jax.typeof(x).sharding
        alone = index if any(sharding.spec[:1]) or not joined else None
        groups.setdefault((x.shape[1:], x.dtype, sharding, alone), []).append(index)
        first = counts[x.shape[1:]]
        counts[x.shape[1:]] += x.shape[0]
        places.append(np.arange(first, counts[x.shape[1:]], dtype=np.int32))
    members = list(groups.values())
    stacks = [
        jnp.concatenate([arrays[index] for index in group])
        if len(group) > 1
        else arrays[group[0]]
        for group in members
    ]
    sizes = [x.shape[0] for x in arrays]

    def unstack(joined: Sequence[jax.Array]) -> list[jax.Array]:
        parts: list[Any] = [None] * len(sizes)
        for stack, group in zip(joined, members, strict=True):
            start = 0
            for index in group:
                stop = start + sizes[index]
                parts[index] = stack if len(group) == 1 else stack[start:stop]
                start = stop
        return parts

    where = [np.concatenate([places[index] for index in group]) for group in members]
    return stacks, unstack, where


def leaf_views(who: str, tree: Any, views: Any) -> list[_matrices.MatrixView]:
    """Lists how each leaf is read, for a method that is for matrices only.

    Args:
      who: Name of the method, for the error.
      tree: Tree of arrays or `jax.ShapeDtypeStruct`.
      views: Tree of views, or the function that finds them. It may have more leaves
        than the tree: inside a partition some are hidden.

    Returns:
      The view of each leaf, in the order of `jax.tree.leaves`.

    Raises:
      ValueError: If a leaf is no matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"kernel": jnp.ones((2, 3))}
      >>> trees.leaf_views("muon", tree, trees.matrix_views)
      [MatrixView(reduction=(0,), output=(1,), split=None)]
    """
    known = _views.views_by_path(tree, views)
    found = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = _paths.path_string(key_path)
        if known.get(path) is None:
            raise ValueError(
                f"{who}: leaf {path!r} has shape {jnp.shape(leaf)} and is no matrix"
                " under the given views. Route such leaves elsewhere,"
                " rest=optlab.optimizers.adamw(3e-4), or name its axes with"
                " trees.matrix_views(params, rules=[...])."
            )
        found.append(known[path])
    return found


def matrix_stacks(
    who: str,
    tree: Any,
    views: Any,
    *,
    resharding: bool = False,
    joined: bool = True,
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any]]:
    """Reads a whole tree as one stack of matrices for each matrix shape.

    Args:
      who: Name of the method, for errors.
      tree: Tree of arrays.
      views: As for `leaf_views`.
      resharding: Whether what is done to the stacks moves matrices between devices by
        itself, as kernels of `sharding.over_axis` do.
      joined: False for a stack of each leaf, or piece of one, in the order of leaves.

    Returns:
      Arrays of shape (k, m, n), fan-in by fan-out, and the function that turns arrays
      of the same shapes back into a tree like the given one.

    Raises:
      ValueError: If a leaf is no matrix; if a matrix is sharded on a mesh with
        Explicit axes and nothing moves it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"up": jnp.ones((2, 4, 8)), "out": jnp.ones((4, 8))}
      >>> stacks, restore = trees.matrix_stacks("muon", tree, trees.matrix_views)
      >>> [stack.shape for stack in stacks]
      [(3, 4, 8)]
    """
    stacks, restore, _ = matrices_with_places(who, tree, views, resharding, joined)
    return stacks, restore


def matrices_with_places(
    who: str, tree: Any, views: Any, resharding: bool, joined: bool
) -> tuple[list[jax.Array], Callable[..., Any], list[np.ndarray]]:
    """Does as `matrix_stacks`, and tells the place of each row, see `with_places`."""
    leaves, treedef = jax.tree.flatten(tree)
    found = leaf_views(who, tree, views)
    pieces, owners = [], []
    for index, (leaf, view) in enumerate(zip(leaves, found, strict=True)):
        for matrices in _matrices.to_matrices(leaf, view):
            if not resharding:
                _refuse_sharded(who, tree, index, matrices)
            pieces.append(matrices)
            owners.append(index)
    stacks, unstack, places = with_places(pieces, joined)

    def restore(stacks: Sequence[jax.Array]) -> Any:
        parts: list[list[jax.Array]] = [[] for _ in leaves]
        for owner, piece in zip(owners, unstack(stacks), strict=True):
            parts[owner].append(piece)
        return treedef.unflatten(
            _matrices.from_matrices(part, view, leaf.shape, jax.typeof(leaf).sharding)
            for part, view, leaf in zip(parts, found, leaves, strict=True)
        )

    return stacks, restore, places


def _refuse_sharded(who: str, tree: Any, index: int, matrices: jax.Array) -> None:
    """A product of a matrix sharded on Explicit axes with itself is ambiguous."""
    spec = jax.typeof(matrices).sharding.spec
    if any(spec[-2:]):
        path, _ = jax.tree_util.tree_leaves_with_path(tree)[index]
        raise ValueError(
            f"{who}: leaf {_paths.path_string(path)!r} is sharded as {spec} inside its"
            " matrices, on a mesh with Explicit axes. Wrap the kernel, for example"
            " orthogonalize=sharding.over_axis(kernels.newton_schulz, mesh, axes)."
        )
