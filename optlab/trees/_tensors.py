"""A whole tree as stacks of matrices, or of tensors, that no device holds in part."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab.trees import _stacks


def tensor_stacks(
    who: str, tree: Any, views: Any, *, joined: bool = True, whole: bool = True
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any]]:
    """Reads a tree as one stack for each shape, for methods with a factor an axis.

    On a mesh every device gets the whole stacks: products of a matrix with itself are
    then summed in the order of one device, and the factors are the same everywhere.
    With whole=False they stay cut as the leaves are, for `sharding.spread` to move.

    Args:
      who: Name of the method, for errors.
      tree: Tree of arrays.
      views: As for `leaf_views`, for stacks of matrices (k, m, n); or 'axes', and every
        leaf is a tensor with all its axes, a scalar one of shape (1,).
      joined: False for a stack of each leaf, or piece of one, in the order of leaves.
      whole: False for stacks that are cut as the leaves are.

    Returns:
      Arrays of shape (k, d_1, ..., d_r), and the function that turns arrays of the
      same shapes back into a tree that is placed like the given one.

    Raises:
      ValueError: If views is a string but 'axes', or a leaf is no matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"conv": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}
      >>> stacks, restore = trees.tensor_stacks("soap", tree, "axes")
      >>> [stack.shape for stack in stacks]
      [(1, 4), (1, 3, 3, 2, 4)]
    """
    stacks, restore, _ = stacks_with_places(
        who, tree, views, joined=joined, whole=whole
    )
    return stacks, restore


def stacks_with_places(
    who: str, tree: Any, views: Any, *, joined: bool = True, whole: bool = True
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any], list[np.ndarray]]:
    """Does as `tensor_stacks`, and tells the place of each row.

    Args:
      who: As for `tensor_stacks`, and so are the others.
      tree: Tree of arrays.
      views: Views of the leaves.
      joined: Whether stacks are joined.
      whole: Whether stacks are whole.

    Returns:
      The stacks, the way back, and for each stack an array (k,), int32. It numbers the
      matrices of one shape in the order of leaves, wherever they lie: what is drawn by
      it is the same on all meshes.

    Raises:
      ValueError: As `tensor_stacks`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(2)}
      >>> trees.stacks_with_places("mine", tree, "axes")[2]
      [array([0, 1], dtype=int32), array([0], dtype=int32)]
    """
    if isinstance(views, str) and views != "axes":
        raise ValueError(f"{who}: views must be 'axes' or tell matrices, got {views!r}")
    near = gathered(tree) if whole else tree
    if views == "axes":
        stacks, back, places = _stack_leaves(near, joined)
    else:
        stacks, back, places = _stacks.matrices_with_places(
            who, near, views, not whole, joined
        )
    if not whole:
        return stacks, back, places

    def restore(stacks: Sequence[jax.Array]) -> Any:
        return jax.tree.map(placed_like, back(stacks), tree)

    return stacks, restore, places


def _stack_leaves(
    tree: Any, joined: bool
) -> tuple[list[jax.Array], Callable[..., Any], list[np.ndarray]]:
    leaves, treedef = jax.tree.flatten(tree)
    alone = [x.reshape(1, *(x.shape or (1,))) for x in leaves]
    stacks, unstack, places = _stacks.with_places(alone, joined)

    def back(stacks: Sequence[jax.Array]) -> Any:
        pieces = zip(unstack(stacks), leaves, strict=True)
        return treedef.unflatten(piece.reshape(x.shape) for piece, x in pieces)

    return stacks, back, places


def gathered(tree: Any) -> Any:
    """Asks for the whole of every array on every device of the mesh that is set.

    Args:
      tree: Tree of arrays, sharded or not.

    Returns:
      The tree; without a mesh the same one.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> print(trees.gathered({"w": jnp.ones(2)})["w"])
      [1. 1.]
    """
    auto = AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types
    leaves, treedef = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for index, x in enumerate(leaves):
        if any(jax.typeof(x).sharding.spec):
            groups.setdefault(jax.typeof(x), []).append(index)
    for members in groups.values():
        # Arrays that lie alike go together, in one collective for all.
        alike = jnp.stack([leaves[index] for index in members])
        mesh = jax.typeof(alike).sharding.mesh
        whole = jax.reshard(alike, NamedSharding(mesh, PartitionSpec()))
        for place, index in enumerate(members):
            leaves[index] = whole[place]
    if auto:
        leaves = [jax.lax.with_sharding_constraint(x, PartitionSpec()) for x in leaves]
    return treedef.unflatten(leaves)


def placed_like(y: jax.Array, x: jax.Array) -> jax.Array:
    """Puts an array where another lies, on a mesh with Explicit axes."""
    sharding = jax.typeof(x).sharding
    return jax.reshard(y, sharding) if any(sharding.spec) else y


def by_shape(function: Callable[..., Sequence[jax.Array]], *trees: Any) -> list[Any]:
    """Runs a batched function once for each shape of leaf, not once for each leaf.

    Args:
      function: From stacks (k, ...), one of each tree, to a tuple of stacks.
      *trees: Trees of one structure, with leaves (k, ...) of equal shapes.

    Returns:
      The trees of the results, as many as the function returns; without any leaves the
      given trees.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import trees
      >>> tree = {"left": jnp.ones((2, 3, 3)), "right": jnp.ones((1, 3, 3))}
      >>> (out,) = trees.by_shape(lambda x: (print(x.shape), x)[1:], tree)
      (3, 3, 3)
    """
    treedef = jax.tree.structure(trees[0])
    if not treedef.num_leaves:
        return list(trees)
    joined = [_stacks.stack_by_shape(jax.tree.leaves(tree)) for tree in trees]
    results = [
        function(*stacks)
        for stacks in zip(*(stacks for stacks, _ in joined), strict=True)
    ]
    unstack = joined[0][1]
    return [
        treedef.unflatten(unstack(list(stacks)))
        for stacks in zip(*results, strict=True)
    ]
