"""Layers: kernels with their biases, in stacks by shape, and their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import trees


def arange(*shape):
    return jnp.arange(float(np.prod(shape))).reshape(shape)


TREE = {
    "attention": {
        "query": {"kernel": arange(4, 2, 3), "bias": arange(2, 3)},
        "out": {"kernel": arange(2, 3, 4)},
    },
    "conv": {"kernel": arange(3, 3, 2, 4), "bias": arange(4)},
    "embed": {"embedding": arange(7, 4)},
    "layers": {"kernel": arange(5, 4, 6), "bias": arange(5, 6)},
}


def groups():
    return trees.layer_groups(TREE, trees.matrix_views)


def test_biases_join_their_kernels_and_equal_shapes_their_group():
    found = [{layer.path: layer.shape for layer in group} for group in groups()]
    assert found == [
        {"attention/out": (1, 6, 4)},
        {"attention/query": (1, 5, 6), "layers": (5, 5, 6)},
        {"conv": (1, 19, 4)},
    ]


def test_stacks_are_undone_and_what_is_no_layer_stays():
    stacks, restore = trees.layer_stacks(TREE, groups())
    assert [stack.shape for stack in stacks] == [(1, 6, 4), (6, 5, 6), (1, 19, 4)]
    np.testing.assert_array_equal(
        stacks[1][0, 4], TREE["attention"]["query"]["bias"].ravel()
    )
    same = restore(stacks)
    jax.tree.map(np.testing.assert_array_equal, same, TREE)
    double = restore([2 * stack for stack in stacks])
    np.testing.assert_array_equal(double["layers"]["bias"], 2 * TREE["layers"]["bias"])
    np.testing.assert_array_equal(
        double["embed"]["embedding"], TREE["embed"]["embedding"]
    )


def test_second_moments_gain_the_one_of_the_bias():
    tree = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    found = trees.layer_groups(tree, trees.matrix_views)
    a, g = jnp.array([2.0, 3.0]), jnp.array([1.0, 2.0, 3.0])
    stats = {"up": trees.LayerStats(a, g, jnp.outer(a, a), jnp.outer(g, g))}
    (pair,) = trees.layer_statistics("kfac", stats, found, moments=2)
    one = np.array([2.0, 3.0, 1.0])
    np.testing.assert_array_equal(pair[0][0], np.outer(one, one))
    np.testing.assert_array_equal(pair[1][0], np.outer(g, g))


@pytest.mark.parametrize(
    ("stats", "error", "message"),
    [
        (None, TypeError, r"mkor: an update needs layer_stats.*lab\.capture"),
        ({}, ValueError, r"mkor: layer_stats has nothing for 'up'.*\('up', None\)"),
        (
            {"up": (jnp.ones(2), jnp.ones((2, 3)))},
            ValueError,
            r"'up' has outputs \(2, 3\), wanted \(1, 3\)",
        ),
    ],
)
def test_missing_and_misshapen_statistics_are_named(stats, error, message):
    found = trees.layer_groups({"up": {"kernel": jnp.ones((2, 3))}}, trees.matrix_views)
    with pytest.raises(error, match=message):
        trees.layer_statistics("mkor", stats, found, moments=1)
