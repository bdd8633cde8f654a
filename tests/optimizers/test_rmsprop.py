"""RMSProp: its variance stays positive, its momentum waits for the rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import optimizers
from tests.optimizers import trajectories


def jitted(tx):
    return optax.GradientTransformation(tx.init, jax.jit(tx.update))


def test_centered_rmsprop_stays_a_number_where_optax_loses_it():
    equal = [np.linspace(0.5, 1.5, 64, dtype=np.float32)] * 150
    centered = optimizers.scale_by_rmsprop(centered=True)
    with np.errstate(all="ignore"):
        ours, optaxs = (
            trajectories.last_update(jitted(tx), equal)
            for tx in (centered, optax.scale_by_stddev())
        )
    assert np.isfinite(ours).all()
    assert np.isnan(optaxs).any()


def test_momentum_follows_the_rate_of_the_moment():
    # Without gradients after the first, what is left of it moves at rates 1 and 0.
    tx = optimizers.rmsprop(
        lambda count: jnp.array([1.0, 1.0, 0.0])[count], momentum=0.5
    )
    grads = [jnp.ones(1), jnp.zeros(1), jnp.zeros(1)]
    points, _ = trajectories.parameters(tx, jnp.zeros(1), grads)
    first = -np.sqrt(10)
    np.testing.assert_allclose(
        np.ravel(points), [first, 1.5 * first, 1.5 * first], rtol=1e-6
    )
