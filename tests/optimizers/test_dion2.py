"""Dion2: the chosen slices, their fading, and Muon when all are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import kernels, optimizers
from tests.optimizers import trajectories

# Slope of the first steps times a few float32 roundings.
ROUNDING = 485 * 2e-7


def step(tx, gradient):
    return tx.update(gradient, tx.init(gradient))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (2, 5, 5)])
def test_with_all_slices_it_is_muon_on_the_sum(shape):
    grads = trajectories.gradients(shape)
    ours = optimizers.scale_by_dion2(fraction=1.0, b1=0.8)
    muon = optimizers.scale_by_muon(
        momentum="sum", nesterov=False, scale="spectral", b1=0.8
    )
    grads = [{"kernel": jnp.asarray(g)} for g in grads]
    states = [tx.init(grads[0]) for tx in (ours, muon)]
    for gradient in grads:
        (got, states[0]), (want, states[1]) = (
            tx.update(gradient, state)
            for tx, state in zip((ours, muon), states, strict=True)
        )
        np.testing.assert_allclose(got["kernel"], want["kernel"], atol=ROUNDING)


@pytest.mark.parametrize("wide", [True, False])
def test_the_largest_slices_of_the_shorter_side_move_and_fade(wide):
    sizes = np.array([[1.0], [4.0], [2.0], [3.0]])
    x = (sizes * np.sign(trajectories.gradients((4, 6))[0])).astype(np.float32)
    x = x if wide else x.T
    tx = optimizers.scale_by_dion2(fraction=0.5, b1=0.75)
    updates, state = step(tx, {"kernel": jnp.asarray(x)})
    moved, left = (
        np.asarray(t["kernel"]) if wide else np.asarray(t["kernel"]).T
        for t in (updates, state.momentum)
    )
    np.testing.assert_array_equal(np.any(moved != 0, axis=1), [0, 1, 0, 1])
    factors = np.array([[1.0], [0.75], [1.0], [0.75]])
    np.testing.assert_allclose(left, factors * (x if wide else x.T))
    # The factor is that of the whole shape.
    part = np.asarray(x if wide else x.T)[[1, 3]]
    polar = kernels.newton_schulz(jnp.asarray(part))
    scale = np.sqrt(6 / 4) if wide else np.sqrt(4 / 6)
    np.testing.assert_allclose(moved[[1, 3]], scale * polar, atol=ROUNDING)


def test_of_a_square_matrix_columns_are_chosen():
    x = {"kernel": jnp.diag(jnp.arange(1.0, 5.0)) + 0.1 * jnp.eye(4)[::-1]}
    updates, _ = step(optimizers.scale_by_dion2(fraction=0.25), x)
    np.testing.assert_array_equal(
        np.any(updates["kernel"] != 0, axis=0), [False, False, False, True]
    )


def test_a_slice_that_waits_is_taken_later():
    x = {"kernel": jnp.diag(jnp.array([3.0, 2.0]))}
    zero = jax.tree.map(jnp.zeros_like, x)
    tx = optimizers.scale_by_dion2(fraction=0.5, b1=0.5)
    first, state = step(tx, x)
    second, _ = tx.update(zero, state)
    assert float(first["kernel"][0, 0]) > 0.6
    assert float(second["kernel"][1, 1]) > 0.6  # 2 beats half of 3
    np.testing.assert_array_equal(second["kernel"][0, 0], 0)


def test_untouched_rows_change_by_decay_alone():
    params = {"kernel": jnp.ones((2, 4))}
    gradient = {"kernel": jnp.asarray([[1.0] * 4, [3.0] * 4])}
    tx = optimizers.dion2(0.5, fraction=0.5, weight_decay=0.25)
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"][0], -0.5 * 0.25)
    assert np.all(updates["kernel"][1] < -0.2)


def test_the_kernel_sees_the_part_alone():
    shapes = []

    def kernel(x):
        shapes.append(x.shape)
        return x

    params = {"a": {"kernel": jnp.ones((3, 8, 6))}, "b": {"kernel": jnp.ones((8, 6))}}
    step(optimizers.scale_by_dion2(orthogonalize=kernel), params)
    assert shapes == [(4, 2, 8)]  # ceil(6 / 4) of six columns, four matrices


def test_a_fraction_out_of_range_and_leaves_without_a_view_are_refused():
    for fraction in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=rf"in \(0, 1\], got {fraction}"):
            optimizers.dion2(0.1, fraction=fraction, rest=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(2,\).*rest="):
        optimizers.dion2(0.1).init({"bias": jnp.ones(2)})
