"""NAdamW against its equations in float64 and against Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories


def transcription(w, grads, eta, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    """Dozat's mean that looks a step ahead, decoupled decay, one leaf in float64."""
    m, v, points = 0.0, 0.0, []
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        u = ahead / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - eta * (u + weight_decay * w)
        points.append(w)
    return points


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_its_equations(decay):
    grads = trajectories.gradients((2, 3), steps=6, dtype=np.float64)
    with jax.enable_x64(True):
        tx = optimizers.nadamw(0.1, b1=0.8, b2=0.95, eps=1e-3, weight_decay=decay)
        got, _ = trajectories.parameters(tx, jnp.ones((2, 3)), grads)
    want = transcription(np.ones((2, 3)), grads, 0.1, 0.8, 0.95, 1e-3, decay)
    np.testing.assert_allclose(got, want, rtol=2e-15)


def test_equals_optax_in_float32():
    params, grads = jnp.ones((2, 3)), trajectories.gradients((2, 3), steps=6)
    got, _ = trajectories.parameters(optimizers.nadamw(0.01), params, grads)
    want, _ = trajectories.parameters(optax.nadamw(0.01), params, grads)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_first_step_is_longer_than_adamws_by_the_look_ahead():
    gradient = jnp.array([3.0, -4.0])
    tx = optimizers.nadamw(0.1, b1=0.9, weight_decay=0.0)
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    # b1 (1 - b1) / (1 - b1^2) + (1 - b1) / (1 - b1) = 0.9 / 1.9 + 1
    np.testing.assert_allclose(np.abs(updates), 0.1 * (0.9 / 1.9 + 1), rtol=1e-5)


def test_in_bfloat16_the_second_moment_moves():
    gradient = jnp.ones(4, jnp.bfloat16)
    _, state = trajectories.parameters(
        optimizers.nadamw(1e-3), gradient, [gradient] * 3
    )
    moment = optax.tree.get(state, "nu")
    assert moment.dtype == jnp.float32
    np.testing.assert_allclose(moment, 1 - 0.999**3, rtol=1e-4)
