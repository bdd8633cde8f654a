"""Lion against the paper in float64 and against Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import fixture, trajectories


def transcription(w, grads, eta, b1=0.9, b2=0.99, weight_decay=0.0):
    """Chen et al., algorithm 2, one leaf in float64."""
    m, points = 0.0, []
    for g in grads:
        c = b1 * m + (1 - b1) * g
        w = w - eta * (np.sign(c) + weight_decay * w)
        m = b2 * m + (1 - b2) * g
        points.append(w)
    return points


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_paper(decay):
    grads = trajectories.gradients((2, 3), steps=6, dtype=np.float64)
    with jax.enable_x64(True):
        tx = optimizers.lion(0.1, b1=0.7, b2=0.9, weight_decay=decay)
        got, _ = trajectories.parameters(tx, jnp.ones((2, 3)), grads)
    want = transcription(np.ones((2, 3)), grads, 0.1, 0.7, 0.9, decay)
    np.testing.assert_allclose(got, want, rtol=2e-15)


def test_equals_the_authors_numbers():
    got = fixture.run(optimizers.lion, weight_decay=0.1)
    want = [
        [[0.89, -1.88], [0.395, 2.87]],
        [[0.9811, -1.7612], [0.29105, 2.7413]],
        [[0.871289, -1.643588], [0.3881395, 2.613887]],
    ]
    np.testing.assert_allclose(got, want, rtol=fixture.DIGITS)


def test_equals_optax_in_float32():
    params, grads = jnp.ones((2, 3)), trajectories.gradients((2, 3), steps=6)
    got, _ = trajectories.parameters(optimizers.lion(0.01), params, grads)
    want, _ = trajectories.parameters(optax.lion(0.01), params, grads)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_every_entry_moves_by_the_rate_whatever_the_gradient():
    gradient = jnp.array([1e-30, -1e30, 0.0, 5.0])
    tx = optimizers.lion(0.25, weight_decay=0.0)
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_array_equal(updates, [-0.25, 0.25, 0, -0.25])


def test_in_bfloat16_the_slow_momentum_moves():
    gradient = jnp.ones(4, jnp.bfloat16)
    tx = optimizers.lion(1e-3, b2=0.999)  # 0.999 rounds to 1 in bfloat16
    points, state = trajectories.parameters(tx, gradient, [gradient] * 3)
    momentum = optax.tree.get(state, "mu")
    assert (momentum.dtype, points[-1].dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(momentum, 1 - 0.999**3, rtol=1e-4)
