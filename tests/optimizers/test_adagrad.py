"""AdaGrad: a constant rate decays by itself."""

import jax.numpy as jnp
import numpy as np

from optlab import optimizers
from tests.optimizers import trajectories


def test_steps_shrink_as_one_over_the_root_of_their_number():
    tx = optimizers.adagrad(1.0, eps=0.0, initial_square=0.0)
    points, _ = trajectories.parameters(tx, jnp.zeros(1), [jnp.full(1, 7.0)] * 4)
    np.testing.assert_allclose(
        np.ravel(points), -np.cumsum(np.arange(1, 5) ** -0.5), rtol=1e-6
    )
