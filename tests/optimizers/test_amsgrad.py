"""AMSGrad: a divisor that never falls, and the first step of the paper."""

import jax.numpy as jnp
import numpy as np

from optlab import optimizers
from tests.optimizers import fixture, trajectories


def test_a_large_gradient_is_not_forgotten():
    grads = [jnp.full(1, g) for g in (9.0, *[1.0] * 20)]
    for make, want in ((optimizers.amsgrad, 1 / 9), (optimizers.adamw, 1.0)):
        tx = make(1.0, b1=0.0, b2=0.5, weight_decay=0.0)
        (*_, before, last), _ = trajectories.parameters(tx, jnp.zeros(1), grads)
        np.testing.assert_allclose(before - last, want, rtol=1e-4)


def test_without_correction_the_first_step_is_that_of_the_paper():
    (first,) = fixture.run(optimizers.amsgrad, steps=1, bias_correction=False)
    moved = np.abs(first - fixture.START)
    np.testing.assert_allclose(moved, 0.1 * 0.1 / 0.001**0.5, rtol=1e-5)
