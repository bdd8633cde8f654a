"""LAMB: each layer of a stack has its ratio, and biases have none."""

import jax.numpy as jnp
import numpy as np
import optax

from optlab import optimizers
from tests.optimizers import trajectories

# Two layers in one leaf, the second a hundred times as long.
STACK = np.random.default_rng(0).normal(size=(2, 4, 3)) * [[[1]], [[100]]]
PARAMS = {"kernel": jnp.float32(STACK), "bias": jnp.linspace(0.5, 2.0, 6)}


def lengths(x):
    return np.linalg.norm(x, axis=(1, 2))


def test_optaxs_layers_of_a_stack_share_a_ratio():
    ours, optaxs = (
        lengths(trajectories.first_update(make(0.1), PARAMS, PARAMS, "kernel"))
        for make in (optimizers.lamb, optax.lamb)
    )
    np.testing.assert_allclose(ours, 0.1 * lengths(STACK), rtol=1e-5)
    # The short one moves by several times its length.
    assert optaxs[0] > 4 * lengths(STACK)[0]


def test_steps_biases_as_adamw():
    ours, adamws = (
        trajectories.first_update(
            make(0.1, eps=1e-8, weight_decay=0.1), PARAMS, PARAMS, "bias"
        )
        for make in (optimizers.lamb, optimizers.adamw)
    )
    np.testing.assert_allclose(ours, adamws, rtol=1e-6)
