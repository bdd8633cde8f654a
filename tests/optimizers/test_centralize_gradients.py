"""Gradient centralization: the right axis, and sums of weights that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, trees
from tests.optimizers import trajectories

KERNEL = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (in, out)
INPUTS, OUTPUTS = [[-1.5] * 3, [1.5] * 3], [[-1.0, 0.0, 1.0]] * 2


def centralized(g, **more):
    tx = optimizers.centralize_gradients(**more)
    return jax.jit(lambda g: tx.update(g, tx.init(g))[0])(g)


def test_the_mean_of_a_flax_kernel_is_taken_over_its_inputs():
    for more in ({"channel_axis": -1}, {"channel_axis": 1}, {}):
        np.testing.assert_array_equal(centralized(KERNEL, **more), INPUTS)
    # Where weights are (out, in), and what Optax takes every leaf for.
    np.testing.assert_array_equal(centralized(KERNEL, channel_axis=0), OUTPUTS)
    np.testing.assert_array_equal(
        optax.centralize().update(KERNEL, optax.EmptyState())[0], OUTPUTS
    )
    np.testing.assert_array_equal(
        centralized(KERNEL.T, channel_axis=0), np.transpose(INPUTS)
    )


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (3, 2, 2, 4)], ids=str)
def test_on_axis_0_it_is_optax_s(shape):
    (g,) = map(jnp.asarray, trajectories.gradients(shape, steps=1))
    want, _ = optax.centralize().update(g, optax.EmptyState())
    np.testing.assert_allclose(centralized(g, channel_axis=0), want, atol=1e-6)


def test_views_know_heads_stacks_and_what_is_no_matrix():
    shapes = {
        "query": {"kernel": (4, 2, 3), "bias": (2, 3)},
        "out": {"kernel": (2, 3, 4)},
        "layers": {"kernel": (5, 4, 6), "bias": (5, 6)},
        "conv": {"kernel": (3, 3, 2, 4)},
        "embed": {"embedding": (7, 4)},
        "empty": {"kernel": (0, 4)},
    }
    g = jax.tree.map(
        lambda s: 1 + np.arange(np.prod(s), dtype=np.float32).reshape(s),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    got = centralized(g)
    sums = {"query": (0,), "out": (0, 1), "layers": (1,), "conv": (0, 1, 2)}
    for name, axes in sums.items():
        np.testing.assert_allclose(np.sum(got[name]["kernel"], axes), 0, atol=1e-4)
        assert np.abs(got[name]["kernel"]).min() > 0
    for name, part in (
        *(("query", "bias"), ("layers", "bias"), ("embed", "embedding")),
        ("empty", "kernel"),
    ):
        np.testing.assert_array_equal(got[name][part], g[name][part])


def test_a_step_keeps_the_sum_of_the_weights_of_each_channel():
    tx = optax.chain(optimizers.centralize_gradients(), optax.sgd(0.1, momentum=0.9))
    w = {"kernel": KERNEL}
    grads = [{"kernel": g} for g in trajectories.gradients((2, 3))]
    *_, last = trajectories.parameters(tx, w, grads)[0]
    np.testing.assert_allclose(last["kernel"].sum(0), KERNEL.sum(0), atol=1e-5)
    assert np.abs(last["kernel"] - KERNEL).max() > 0.1


def test_masks_and_views_choose_leaves():
    g = {"a": {"kernel": KERNEL}, "b": {"kernel": KERNEL}}
    mask = {"a": {"kernel": True}, "b": {"kernel": False}}
    views = trees.matrix_views(g, rules=[("b", None)])
    for more in ({"mask": mask}, {"mask": lambda tree: mask}, {"views": views}):
        got = centralized(g, **more)
        np.testing.assert_array_equal(got["a"]["kernel"], INPUTS)
        np.testing.assert_array_equal(got["b"]["kernel"], KERNEL)


def test_means_are_taken_in_float32():
    # In bfloat16 257 is 256: so would be a mean of half of each.
    g = jnp.array([[256.0], [258.0]], jnp.bfloat16)
    got = centralized(g)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, [[-1.0], [1.0]])


@pytest.mark.parametrize("axis", [2, -3, (0, 1), (0, 0), ()], ids=str)
def test_an_axis_that_a_leaf_has_not_is_named(axis):
    said = r"centralize_gradients: leaf 'up' has shape \(2, 3\); channel_axis=.* must"
    with pytest.raises(ValueError, match=said):
        centralized({"up": KERNEL, "bias": jnp.ones(3)}, channel_axis=axis)
