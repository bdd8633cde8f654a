"""Matrices of one shape meet in one stack, and go back to where they came from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import trees
from optlab.trees import MatrixView

TREE = {
    "fused": {"kernel": np.arange(24.0).reshape(2, 12)},
    "stack": {"kernel": np.arange(24.0, 60.0).reshape(3, 2, 6)},
    "up": {"kernel": np.arange(60.0, 80.0).reshape(4, 5)},
}
SPLIT = [("fused", MatrixView((0,), (1,), split=(6, 6)))]


def test_stacks_are_joined_by_shape_and_cut_back_in_order():
    shapes = [(1, 2, 3), (2, 3, 2), (4, 2, 3), (1, 2, 3), (0, 2, 3)]
    arrays = [jnp.full(shape, float(i)) for i, shape in enumerate(shapes)]
    arrays.append(jnp.ones((1, 2, 3), jnp.bfloat16))
    stacks, unstack = trees.stack_by_shape(arrays)
    assert [s.shape for s in stacks] == [(6, 2, 3), (2, 3, 2), (1, 2, 3)]
    np.testing.assert_array_equal(stacks[0][:, 0, 0], [0, 2, 2, 2, 2, 3])
    back = unstack([s + 1 for s in stacks])
    assert [b.dtype for b in back] == [a.dtype for a in arrays]
    for got, want in zip(back, arrays, strict=True):
        np.testing.assert_array_equal(got, want + 1)


def test_nothing_at_all_is_stacked_to_nothing():
    stacks, unstack = trees.stack_by_shape([])
    assert (stacks, unstack([])) == ([], [])


def test_the_number_of_kernel_calls_grows_with_shapes_not_with_layers():
    stacks, _ = trees.stack_by_shape([jnp.ones((1, 2, 3))] * 50)
    assert [s.shape for s in stacks] == [(50, 2, 3)]


def test_a_stack_sharded_over_its_first_axis_is_not_joined():
    mesh = jax.make_mesh((8,), ("layers",))
    place = NamedSharding(mesh, PartitionSpec("layers"))
    sharded = [jax.device_put(np.ones((8, 2, 3)), place) for _ in range(2)]
    plain = [jnp.ones((1, 2, 3))] * 2
    stacks, unstack = trees.stack_by_shape([*sharded, *plain])
    assert [s.shape for s in stacks] == [(8, 2, 3), (8, 2, 3), (2, 2, 3)]
    assert [p.shape[0] for p in unstack(stacks)] == [8, 8, 1, 1]


def views(tree):
    return trees.matrix_views(tree, rules=SPLIT)


def test_a_tree_is_one_stack_for_each_matrix_shape_and_comes_back_whole():
    stacks, restore = trees.matrix_stacks("who", jax.tree.map(jnp.array, TREE), views)
    assert [stack.shape for stack in stacks] == [(5, 2, 6), (1, 4, 5)]
    np.testing.assert_array_equal(stacks[0][1], TREE["fused"]["kernel"][:, 6:])
    back = restore([2 * stack for stack in stacks])
    jax.tree.map(lambda b, x: np.testing.assert_array_equal(b, 2 * x), back, TREE)


def test_leaves_get_the_views_of_a_larger_tree():
    only_up = {"up": TREE["up"]}
    (view,) = trees.leaf_views("who", only_up, views(TREE))
    assert view == MatrixView((0,), (1,))


@pytest.mark.parametrize("found", [trees.matrix_views, trees.matrix_views({"bias": 1})])
def test_a_leaf_that_is_no_matrix_is_named(found):
    tree = {"bias": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=r"who: leaf 'bias' has shape \(3,\) and is no"
    ):
        trees.leaf_views("who", tree, found)
    with pytest.raises(ValueError, match="who: leaf 'bias'"):
        trees.matrix_stacks("who", tree, found)


def test_matrices_sharded_on_explicit_axes_need_something_that_moves_them():
    mesh = jax.make_mesh((8,), ("x",))
    place = NamedSharding(mesh, PartitionSpec("x", None))
    tree = {"kernel": jax.device_put(np.ones((8, 2)), place)}
    with pytest.raises(ValueError, match="who: leaf 'kernel' is sharded as"):
        trees.matrix_stacks("who", tree, trees.matrix_views)
    stacks, _ = trees.matrix_stacks("who", tree, trees.matrix_views, resharding=True)
    assert [stack.shape for stack in stacks] == [(1, 8, 2)]
