"""Adafactor: factors of layers, bytes, bounds, and Optax on one matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories


def test_equals_optax_on_one_matrix():
    start, *grads = np.random.default_rng(0).normal(size=(4, 3, 2))
    grads = [{"kernel": g} for g in grads]
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(start)}
        optaxs = optax.adafactor(0.1, min_dim_size_to_factor=2)
        got, want = (
            trajectories.parameters(tx, params, grads, compiled=True)[0][-1]["kernel"]
            for tx in (optimizers.adafactor(0.1), optaxs)
        )
    # Optax's decays are float32.
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_reads_an_attention_kernel_as_the_layer_does():
    rng = np.random.default_rng(0)
    w, g = (jnp.float32(rng.normal(size=(4, 12))) for _ in range(2))
    tx, steps, factors = optimizers.adafactor(0.1), [], []
    for name, shape in (("up", (4, 12)), ("query", (4, 2, 6))):
        params, grads = ({name: {"kernel": x.reshape(shape)}} for x in (w, g))
        state: Any = tx.init(params)
        updates: Any = tx.update(grads, state, params)[0]
        steps.append(updates[name]["kernel"].reshape(4, 12))
        factors.append((state[0].rows[0].shape, state[0].columns[0].shape))
    np.testing.assert_allclose(*steps, rtol=1e-5)
    assert factors == [((4, 1), (1, 12)), ((4, 1, 1), (1, 2, 6))]


@pytest.mark.parametrize("path", ["up/kernel", "embed/embedding", "lm_head/kernel"])
def test_the_state_is_one_row_and_one_column(path):
    layer, leaf = path.split("/")
    params = {layer: {leaf: jax.ShapeDtypeStruct((64, 32), jnp.bfloat16)}}
    got = trajectories.state_bytes(optimizers.adafactor(0.1), params)
    assert got == 4 * (64 + 32)
    got = trajectories.state_bytes(optimizers.adafactor(0.1, b1=0.9), params)
    assert got == 4 * (64 + 32 + 64 * 32)


def test_updates_are_bounded_and_weights_at_zero_move():
    zero, one = jnp.zeros((4, 3)), jnp.ones((4, 3))
    bounded = optimizers.scale_by_adafactor()
    free = optimizers.scale_by_adafactor(max_rms=None, min_scale=None)
    # The mean square of 0 and 1 is 2^-0.8; its root would make the update 1.32.
    for tx, want in ((bounded, 1e-3), (free, 2**0.4)):
        updates, state = tx.update(
            {"kernel": zero}, tx.init({"kernel": zero}), {"kernel": zero}
        )
        updates: Any = tx.update({"kernel": one}, state, {"kernel": zero})[0]
        np.testing.assert_allclose(updates["kernel"], want, rtol=1e-5)


def test_a_model_of_vectors_has_no_factors():
    w = {"bias": jnp.full(3, 2.0)}
    tx = optimizers.adafactor(0.1)
    got = trajectories.first_update(tx, {"bias": jnp.array([1.0, -5, 0])}, w, "bias")
    np.testing.assert_allclose(got, [-0.2, 0.2, 0], rtol=1e-5)
    large = optimizers.scale_by_adafactor(min_size=4)
    state = jax.eval_shape(large.init, {"kernel": jnp.ones((4, 3))})
    assert state.square["kernel"].shape == (4, 3)
