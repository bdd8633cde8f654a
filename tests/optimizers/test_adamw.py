"""AdamW against the paper in float64 and against Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, schedules
from tests.optimizers import trajectories

DECAYS = {"none": 0.0, "some": 0.1}


def transcription(w, grads, eta, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    """Loshchilov and Hutter, algorithm 2, one leaf in float64."""
    m, v, points = 0.0, 0.0, []
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - eta * (u + weight_decay * w)
        points.append(w)
    return points


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
def test_equals_the_paper(decay):
    grads = trajectories.gradients((2, 3), steps=6, dtype=np.float64)
    with jax.enable_x64(True):
        tx = optimizers.adamw(0.1, b1=0.8, b2=0.95, eps=1e-3, weight_decay=decay)
        got, _ = trajectories.parameters(tx, jnp.ones((2, 3)), grads)
    want = transcription(np.ones((2, 3)), grads, 0.1, 0.8, 0.95, 1e-3, decay)
    # b^t is a float64 power: 10 eps.
    np.testing.assert_allclose(got, want, rtol=2e-15)


def test_equals_optax_in_float32():
    params, grads = jnp.ones((2, 3)), trajectories.gradients((2, 3), steps=6)
    rate = schedules.cosine(0.1, total_steps=5, warmup_steps=2)
    for ours, theirs in (
        (optimizers.adamw(0.01), optax.adamw(0.01)),
        (optimizers.adamw(rate, b2=0.95), optax.adamw(rate, b2=0.95)),
    ):
        got, _ = trajectories.parameters(ours, params, grads)
        want, _ = trajectories.parameters(theirs, params, grads)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_first_step_is_the_rate_times_the_sign():
    gradient = jnp.array([1e-3, -20.0, 5e4])
    tx = optimizers.adamw(0.1, weight_decay=0.0)
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_allclose(updates, [-0.1, 0.1, -0.1], rtol=2e-5)


def test_decay_follows_the_schedule_and_the_mask():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    rate = schedules.linear(0.5, total_steps=2)
    tx = optimizers.adamw(
        rate, weight_decay=0.5, mask=lambda p: {"kernel": True, "bias": False}
    )
    points, _ = trajectories.parameters(tx, params, [nothing] * 3)
    # 1 - 1/2 x 1/2, then 1 - 1/4 x 1/2 of that, then a rate of nothing.
    kernel = [float(point["kernel"][0]) for point in points]
    assert kernel == [3 / 4, 21 / 32, 21 / 32]
    np.testing.assert_array_equal(points[-1]["bias"], 1)


def test_in_bfloat16_the_second_moment_moves():
    gradient = jnp.ones(4, jnp.bfloat16)
    tx = optimizers.adamw(1e-3)
    _, state = trajectories.parameters(tx, gradient, [gradient] * 3)
    moment = optax.tree.get(state, "nu")
    assert moment.dtype == jnp.float32
    np.testing.assert_allclose(moment, 1 - 0.999**3, rtol=1e-4)


def test_in_bfloat16_an_update_is_rounded_once():
    rng = np.random.default_rng(0)
    w, g = (jnp.asarray(rng.normal(size=64), jnp.bfloat16) for _ in range(2))
    tx = optimizers.adamw(1e-3, weight_decay=0.1)
    updates, _ = tx.update(g, tx.init(w), w)
    wide = [np.asarray(x.astype(jnp.float32), np.float64) for x in (w, g)]
    (want,) = transcription(wide[0], [wide[1]], 1e-3, weight_decay=0.1)
    want = (want - wide[0]).astype(np.float32)
    assert updates.dtype == jnp.bfloat16
    # Half a unit in the last of bfloat16's eight places, and float32's own error.
    np.testing.assert_allclose(updates.astype(jnp.float32), want, rtol=2**-8 + 1e-5)
