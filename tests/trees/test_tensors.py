"""Stacks of tensors: read, written back, gathered on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import trees

TREE = {
    "conv": jnp.arange(24.0).reshape(2, 3, 4),
    "bias": jnp.arange(3.0),
    "scale": jnp.float32(5),
}


def test_every_axis_of_a_leaf_is_an_axis_of_its_stack():
    stacks, restore = trees.tensor_stacks("x", TREE, "axes")
    assert [x.shape for x in stacks] == [(1, 3), (1, 2, 3, 4), (1, 1)]
    doubled = restore([2 * x for x in stacks])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), doubled, TREE)


def test_equal_shapes_share_a_stack():
    tree = {"a": jnp.ones((2, 3)), "b": 2 * jnp.ones((2, 3)), "c": jnp.ones(3)}
    stacks, _ = trees.tensor_stacks("x", tree, "axes")
    assert [x.shape for x in stacks] == [(2, 2, 3), (1, 3)]


def test_other_words_are_refused():
    with pytest.raises(ValueError, match=r"x: views must be 'axes' .*got 'axis'"):
        trees.tensor_stacks("x", TREE, "axis")


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_on_a_mesh_stacks_are_whole_and_leaves_go_back(axis_type):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    tree = {"a": {"kernel": jnp.ones((8, 2))}, "b": {"kernel": jnp.ones((8, 2))}}
    specs = {"a": {"kernel": P("d")}, "b": {"kernel": P()}}

    @jax.jit
    def both(tree):
        stacks, restore = trees.tensor_stacks("x", tree, trees.matrix_views)
        return trees.gathered(stacks), restore([3 * x for x in stacks])

    with jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
        )
        stacks, back = both(placed)
    assert [x.shape for x in stacks] == [(2, 8, 2)]
    assert stacks[0].sharding.is_fully_replicated
    np.testing.assert_array_equal(back["a"]["kernel"], 3)
    if axis_type == AxisType.Explicit:
        assert back["a"]["kernel"].sharding.spec == P("d", None)


def test_a_function_runs_once_for_each_shape():
    tree = {"a": (jnp.ones((2, 3)), jnp.ones((1, 4))), "b": (jnp.ones((5, 3)), None)}
    calls = []

    def function(x, y):
        calls.append(x.shape)
        return x + y, x - y

    total, difference = trees.by_shape(function, tree, tree)
    assert sorted(calls) == [(1, 4), (7, 3)]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), total, tree)
    assert not any(np.any(x) for x in jax.tree.leaves(difference))
    assert trees.by_shape(function, ((), None), ((), None)) == [((), None)] * 2
