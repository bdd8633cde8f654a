"""The sums over a schedule equal their definitions, and their gradients are finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from optlab import laws


def twice(rate, decay, warmup=0):
    """S2 by its definition, a sum in a sum."""
    fall = np.diff(rate, prepend=rate[0])
    fall[: warmup + 1] = 0
    terms = [
        sum(-fall[k] * decay ** (i - k) for k in range(1, i + 1))
        for i in range(len(rate))
    ]
    return np.cumsum(terms)


def test_equal_the_sums_of_five_rates():
    rate = [1.0, 1.0, 0.5, 0.5, 0.25]
    np.testing.assert_array_equal(laws.forward_area(rate), [1, 2, 2.5, 3, 3.25])
    area = laws.annealing_area(rate, decay=0.5)
    np.testing.assert_array_equal(area, [0, 0, 0.5, 0.75, 1.125])


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_equal_the_double_sum_at_every_length(length, decay):
    rate = np.random.default_rng(0).uniform(0, 1, length)
    with jax.enable_x64(True):
        area = laws.annealing_area(rate, decay=decay, warmup_steps=length // 4)
        np.testing.assert_allclose(laws.forward_area(rate), rate.cumsum(), rtol=1e-13)
    want = twice(rate, decay, length // 4)
    np.testing.assert_allclose(area, want, rtol=1e-11, atol=1e-12)


def test_one_drop_and_a_steady_fall_have_closed_forms():
    with jax.enable_x64(True):
        drop = np.where(np.arange(3000) < 1000, 1.0, 0.7)
        area = laws.annealing_area(drop)
        n = np.arange(1, 2001)
        np.testing.assert_allclose(area[1000:], 300 * (1 - 0.999**n), rtol=1e-9)
        steady = laws.annealing_area(1 - 1e-6 * np.arange(1001))[-1]
        np.testing.assert_allclose(steady, 0.36832773, rtol=1e-7)


def test_float32_is_good_for_a_prediction_over_many_steps():
    rate = (3e-4 * (1 + np.cos(np.pi * np.linspace(0, 1, 20_000))) / 2).astype("f4")
    with jax.enable_x64(True):
        exact = np.asarray(laws.annealing_area(rate.astype("f8")))
    got = np.asarray(laws.annealing_area(rate))
    assert got.dtype == np.float32
    # 20,000 float32 terms of one sign: about sqrt(T) eps, times ten.
    bound = 10 * np.sqrt(20_000) * 2.0**-24
    np.testing.assert_allclose(got[5000:], exact[5000:], rtol=bound)


def test_leading_axes_are_a_batch():
    rate = np.random.default_rng(1).uniform(0, 1, (2, 3, 70)).astype("f4")
    got = laws.annealing_area(rate, decay=0.9)
    for index in np.ndindex(2, 3):
        one = laws.annealing_area(rate[index], decay=0.9)
        np.testing.assert_allclose(got[index], one, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        rate = jnp.asarray(np.random.default_rng(2).uniform(0.1, 1, 90))

        def total(rate, decay):
            return jnp.sum(laws.annealing_area(rate, decay=decay) ** 2)

        test_util.check_grads(total, (rate, 0.9), order=1, modes=["rev", "fwd"])


def test_a_rise_after_the_warmup_counts_against_it():
    up = laws.annealing_area([1.0, 1.0, 2.0, 2.0], decay=0.5)
    np.testing.assert_array_equal(up, [0, 0, -1, -1.5])
    warm = laws.annealing_area([1.0, 1.0, 2.0, 2.0], decay=0.5, warmup_steps=2)
    np.testing.assert_array_equal(warm, 0)
