"""Signum: signs of means, signSGD and Lion."""

import numpy as np

from optlab import optimizers
from tests.optimizers import fixture


def test_without_memory_it_is_signsgd():
    got = fixture.run(optimizers.signum, b1=0.0)
    want = fixture.START - 0.1 * np.cumsum(np.sign(fixture.GRADIENTS), 0)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_with_one_decay_it_is_lion():
    got = fixture.run(optimizers.signum, b1=0.9, weight_decay=0.1)
    want = fixture.run(optimizers.lion, b1=0.9, b2=0.9, weight_decay=0.1)
    np.testing.assert_array_equal(got, want)
