"""Three gradients at a matrix, on which the authors' programs have been run."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.optimizers import trajectories

START = [[1.0, -2.0], [0.5, 3.0]]
GRADIENTS = (
    [[0.1, -0.2], [0.3, 0.4]],
    [[-0.1, -0.1], [0.2, 0.5]],
    [[0.05, 0.0], [-0.3, 0.6]],
)
RATE = 0.1
# The numbers are printed with ten digits.
DIGITS = 1e-8


def run(make, *, steps=3, start=START, gradients=GRADIENTS, **settings):
    """Returns the parameters after each step in float64, at a rate of 0.1."""
    with jax.enable_x64(True):
        grads = [np.array(gradients[t % len(gradients)]) for t in range(steps)]
        tx = make(RATE, **settings)
        points, _ = trajectories.parameters(tx, jnp.array(start), grads, compiled=True)
        return np.array(points)
