"""The unified budget-aware schedule."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules


@pytest.mark.parametrize("phi", [0.25, 1.0, 2.0, 5.0])
def test_equals_the_formula_at_every_step(phi):
    rate = schedules.uba(1e-3, total_steps=90, warmup_steps=10, end_value=1e-4, phi=phi)
    steps = np.arange(100)
    wave = 1 + np.cos(np.pi * np.clip((steps - 10) / 80, 0, 1))
    decay = 1e-4 + 9e-4 * 2 * wave / (2 * phi + (2 - phi) * wave)
    want = np.where(steps < 10, 1e-3 * steps / 10, decay)
    np.testing.assert_allclose(rate(steps), want, rtol=2e-6)


def test_phi_of_two_is_cosine():
    steps, run = jnp.arange(70), {"total_steps": 60, "warmup_steps": 6}
    uba, cosine = schedules.uba(1.0, phi=2.0, **run), schedules.cosine(1.0, **run)
    np.testing.assert_allclose(uba(steps), cosine(steps), rtol=2e-7)


def test_a_small_phi_holds_the_peak_and_a_larger_one_falls_sooner():
    run, steps = {"total_steps": 100}, jnp.arange(1, 100)
    curves = [schedules.uba(1.0, phi=phi, **run)(steps) for phi in (1e-6, 0.5, 2, 5)]
    for higher, lower in itertools.pairwise(curves):
        assert (higher > lower).all()
    np.testing.assert_allclose(curves[0][:90], 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("phi", "mean"), [(0.25, 0.739), (0.5, 0.667), (1, 0.586), (2, 0.5), (5, 0.387)]
)
def test_the_mean_factor_falls_with_phi(phi, mean):
    rates = schedules.uba(1.0, total_steps=4000, phi=phi)(jnp.arange(4000))
    assert abs(float(rates.mean()) - mean) < 6e-4


def test_the_last_rates_shrink_with_the_square_of_what_is_left():
    total, phi = 10**6, 0.5
    left = np.array([1, 2, 4, 8])
    rates = schedules.uba(1.0, total_steps=total, phi=phi)(jnp.asarray(total - left))
    want = np.pi**2 / (2 * phi) * (left / total) ** 2
    np.testing.assert_allclose(rates, want, rtol=1e-5)


@pytest.mark.parametrize("phi", [0, -1, float("inf"), float("nan")])
def test_phi_that_is_not_positive_is_refused(phi):
    with pytest.raises(ValueError, match=r"schedules\.uba: phi must be positive"):
        schedules.uba(1.0, total_steps=10, phi=phi)
