"""Simplified AdEMAMix beside Adam: the same direction, another length."""

import numpy as np
import optax

from optlab import optimizers
from tests.optimizers import fixture, trajectories


def test_without_the_gradient_it_is_adam_with_a_sum():
    simple = fixture.run(optimizers.simplified_ademamix, steps=2, b1=0.5, b2=0.9)
    adam = fixture.run(optimizers.adamw, steps=2, b1=0.5, b2=0.9, weight_decay=0.0)
    start = np.array(fixture.START)
    # Adam's mean is (1 - b1) times the sum, over 1 - b1^t.
    np.testing.assert_allclose(simple[0] - start, adam[0] - start, rtol=1e-12)
    np.testing.assert_allclose(
        simple[1] - simple[0], (1 - 0.5**2) / 0.5 * (adam[1] - adam[0]), rtol=1e-12
    )


def test_survives_a_square_that_overflows():
    grads = [np.full(1, g, np.float32) for g in (1e30, 1.0)]
    ours, optaxs = (
        trajectories.last_update(make(), grads)
        for make in (
            optimizers.scale_by_simplified_ademamix,
            optax.contrib.scale_by_simplified_ademamix,
        )
    )
    assert np.isfinite(ours).all()
    assert np.isnan(optaxs).all()
