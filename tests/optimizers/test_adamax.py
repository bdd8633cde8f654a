"""AdaMax: how far an update may reach, and what becomes of its maximum."""

import jax.numpy as jnp
import numpy as np

from optlab import optimizers
from tests.optimizers import trajectories


def test_the_maximum_decays_until_a_gradient_exceeds_it():
    grads = [jnp.full(1, g) for g in (8.0, 1.0, 1.0, 1.0, 1.0)]
    tx = optimizers.adamax(1.0, b1=0.0, b2=0.5, eps=0.0)
    points, _ = trajectories.parameters(tx, jnp.zeros(1), grads)
    # Maxima of 8, 4, 2, 1 and 1.
    np.testing.assert_allclose(
        np.ravel(points), -np.cumsum([1, 1 / 4, 1 / 2, 1, 1]), rtol=1e-6
    )
