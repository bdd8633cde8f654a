"""An exponential through a few losses, outliers left out."""

import numpy as np
import pytest

from optlab import controllers

X = np.arange(100)
CURVE = 0.8 * np.exp(-0.02 * X) + 0.3


def test_an_exact_curve_is_followed_to_its_end():
    assert controllers.forecast_loss(CURVE, 1000) == pytest.approx(0.3, abs=1e-6)
    half_way = 0.8 * np.exp(-0.02 * 200) + 0.3
    assert controllers.forecast_loss(CURVE, 200) == pytest.approx(half_way, abs=1e-6)


@pytest.mark.parametrize("outliers", [0, 3])
def test_noise_and_outliers_move_the_forecast_little(outliers):
    errors = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        losses = CURVE + 0.02 * rng.normal(size=100)
        losses[rng.integers(0, 50, outliers)] += 0.5
        errors.append(abs(controllers.forecast_loss(losses, 1000) - 0.3))
    # Over 200 seeds: 0.0097 and 0.028 without outliers.
    assert np.median(errors) < 0.013
    assert np.quantile(errors, 0.95) < 0.035


def test_outliers_would_matter():
    losses = CURVE + 0.02 * np.random.default_rng(0).normal(size=100)
    losses[[35, 42, 47]] += 2.0
    kept = abs(controllers.forecast_loss(losses, 1000, rounds=0) - 0.3)
    gone = abs(controllers.forecast_loss(losses, 1000) - 0.3)
    assert gone < 0.03 < 0.1 < kept


def test_the_second_half_is_believed():
    losses = CURVE.copy()
    losses[90] += 2.0
    assert controllers.forecast_loss(losses, 1000) != pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e5])
def test_the_unit_of_the_loss_does_not_matter(scale):
    forecast = controllers.forecast_loss(scale * CURVE, 1000)
    assert forecast / scale == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("loss", [0.0, 1.0, 1e30])
def test_a_constant_stays(loss):
    expected = min(loss, 1e6)
    assert controllers.forecast_loss([loss] * 5, 50) == pytest.approx(expected)


def test_a_rise_goes_on_rising():
    rising = 2.0 - CURVE
    assert controllers.forecast_loss(rising, 1000) == pytest.approx(1.7, abs=1e-6)


def test_a_straight_line_falls_a_little_further():
    forecast = controllers.forecast_loss(np.linspace(1, 0.9, 10), 100)
    assert 0.9 - 0.06 < forecast < 0.9 - 0.04


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_makes_a_huge_forecast(bad):
    assert controllers.forecast_loss([1.0, 0.9, bad, 0.8, 0.7], 50) == 1e6
    assert controllers.forecast_loss([1e9, 2e9, 3e9, 4e9], 50) == 1e6


@pytest.mark.parametrize(
    ("losses", "horizon", "said"),
    [
        ([1.0, 0.9, 0.8], 10, r"at least 4 losses in a row .* shape \(3,\)"),
        ([[1.0] * 5], 10, r"shape \(1, 5\)"),
        ([1.0] * 5, 3, "horizon=3 must not lie before the last of the 5 losses, at 4"),
        ([1.0] * 5, np.nan, "horizon=nan"),
        ([1.0] * 5, np.inf, "horizon=inf"),
    ],
)
def test_what_cannot_be_forecast_is_refused(losses, horizon, said):
    with pytest.raises(ValueError, match=said):
        controllers.forecast_loss(losses, horizon)
