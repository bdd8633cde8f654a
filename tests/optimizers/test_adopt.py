"""ADOPT: what the first gradient is for."""

import numpy as np

from optlab import optimizers
from tests.optimizers import fixture


def test_first_gradient_only_starts_the_divisor():
    first, second = fixture.run(optimizers.adopt, steps=2, weight_decay=0.5)
    np.testing.assert_allclose(first, 0.95 * np.array(fixture.START), rtol=1e-15)
    # Then 0.1 of the gradient over the one before, at most 1: -1, 1/2, 2/3 and 1.
    want = 0.95 * first - 0.1 * 0.1 * np.array([[-1, -0.5], [2 / 3, 1]])
    np.testing.assert_allclose(second, want, rtol=1e-14)
