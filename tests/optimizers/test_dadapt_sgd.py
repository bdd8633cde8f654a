"""D-Adaptation of gradient descent beside test_distance.py: its norm and momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers
from tests.optimizers import trajectories


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_first_step_is_d0_long_whatever_the_gradient(size):
    g = {"a": jnp.array([3.0, 0.0]) * size, "b": jnp.array([[-4.0]]) * size}
    tx = optimizers.dadapt_sgd(d0=0.5)
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g)
    np.testing.assert_allclose(updates["a"], [-0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [[0.4]], rtol=1e-6)


def test_at_a_d_that_stays_it_is_heavy_ball():
    # Each gradient is at right angles to the sum of those before: no progress.
    grads = list(np.eye(4, dtype=np.float32))
    points, state = trajectories.parameters(
        optimizers.dadapt_sgd(momentum=0.75, d0=0.1), jnp.ones(4), grads, compiled=True
    )
    want, _ = trajectories.parameters(
        optimizers.sgd(0.1 * 0.25, momentum=0.75), jnp.ones(4), grads, compiled=True
    )
    assert state.d == np.float32(0.1) and state.first_norm == 1
    np.testing.assert_allclose(points, want, rtol=1e-6)


def test_two_steps_by_hand():
    # a = 1/2; r = 1/4 0 + a 1 (a 1) = 1/4, s = 1, h = 2 r / s = 1/2, then a is 1/2.
    tx = optimizers.dadapt_sgd(d0=0.5)
    ones = [np.ones(1, np.float32)] * 3
    points, state = trajectories.parameters(tx, jnp.zeros(1), ones, compiled=True)
    np.testing.assert_allclose(np.ravel(points), [-0.5, -1.0, -1.5], rtol=1e-6)
    # After the third: r = 1/4 + 1/2, s = 3/2, h = 1.
    np.testing.assert_allclose([state.numerator, state.d], [0.75, 1.0], rtol=1e-6)


def test_a_first_gradient_that_is_no_number_is_passed_over():
    tx = optimizers.dadapt_sgd()
    nan, one = (np.full(2, x, np.float32) for x in (np.nan, 1.0))
    points, state = trajectories.parameters(tx, jnp.ones(2), [nan, one], compiled=True)
    np.testing.assert_array_equal(points[0], 1)
    assert int(state.count) == 1 and np.isfinite(state.s).all()


def test_the_decay_is_in_the_norm_of_the_first_gradient():
    tx = optimizers.dadapt_sgd(weight_decay=1.0, mask={"a": True, "b": False})
    start = {"a": jnp.array([4.0]), "b": jnp.array([7.0])}
    gradient = {"a": np.zeros(1, np.float32), "b": np.full(1, 3.0, np.float32)}
    _, state = trajectories.parameters(tx, start, [gradient], compiled=True)
    np.testing.assert_allclose(state.first_norm, 5.0, rtol=1e-6)


def test_eight_bytes_a_parameter():
    got = trajectories.state_bytes(
        optimizers.dadapt_sgd(), jnp.ones((8, 8), jnp.bfloat16)
    )
    assert got == 8 * 8**2


def test_a_momentum_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"dadapt_sgd: momentum must be .* got 1\.0"):
        optimizers.dadapt_sgd(momentum=1.0)
