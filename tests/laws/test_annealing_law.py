"""The annealing law and its kin equal their formulas and keep their identities."""

import jax
import numpy as np
import pytest

from optlab import laws
from tests.laws import simulated
from tests.laws.test_sums import twice


def transcription(params, rate, warmup, decay):
    """L0 + A S1^-alpha - C S2, for each number of updates."""
    area = np.maximum(np.cumsum(rate), 1e-9)  # the first rate is 0
    return (
        params["L0"]
        + params["A"] * area ** -params["alpha"]
        - params["C"] * twice(rate, decay, warmup)
    )


@pytest.mark.parametrize("name", ["cosine", "wsd", "drop"])
def test_the_annealing_law_equals_its_formula(name):
    rate = simulated.rate_of(simulated.SCHEDULES[name], 150)
    params, step = simulated.PARAMS["annealing"], np.array([5, 60, 149, 150])
    got = simulated.losses(laws.annealing_law(decay=0.9), params, rate, step)
    want = transcription(params, rate, 20, 0.9)[step - 1]
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_the_authors_warmup_counts_as_if_it_had_been_at_the_peak():
    rate = simulated.rate_of(simulated.SCHEDULES["cosine"], 100)
    params, step = simulated.PARAMS["annealing"], np.array([50, 100])
    got = simulated.losses(
        laws.annealing_law(decay=0.9, warmup="peak"), params, rate, step
    )
    flat = np.where(np.arange(100) < 20, rate.max(), rate)
    want = transcription(params, flat, 20, 0.9)[step - 1]
    np.testing.assert_allclose(got, want, rtol=1e-10)


def mean_response(n, tau):
    nodes, weights = np.polynomial.laguerre.laggauss(6)
    return 1 - np.exp(-np.multiply.outer(n, nodes) / tau) @ weights


@pytest.mark.parametrize("name", ["wsd", "drop", "constant"])
def test_the_progress_law_equals_its_formula(name):
    rate = simulated.rate_of(simulated.SCHEDULES[name], 250)
    params, step = simulated.PARAMS["progress"], np.array([5, 60, 201, 202, 249, 250])
    got = simulated.losses(laws.progress_law(), params, rate, step)
    fall = -np.diff(rate, prepend=rate[0])
    fall[:21] = 0
    for at, loss in zip(step, got, strict=True):
        progress = np.sum((rate[:at] / simulated.PEAK) ** params["power"])
        paid = fall[:at] @ mean_response(at - np.arange(at), params["tau"])
        want = params["L0"] + params["A"] * progress ** -params["alpha"]
        np.testing.assert_allclose(loss, want - params["B"] * paid, rtol=1e-10)


def test_a_fall_pays_half_in_tau_updates_and_the_rest_slowly():
    n = np.arange(1, 401)
    paid = mean_response(n, 20.0)
    assert abs(paid[19] - 0.5) < 1e-4
    # Six nodes follow the long tail for five tau, and then leave it slowly.
    np.testing.assert_allclose(paid[:100], (n / (n + 20.0))[:100], atol=0.016)
    np.testing.assert_allclose(paid, n / (n + 20.0), atol=0.05)


@pytest.mark.parametrize("name", ["annealing", "progress", "multi_power"])
def test_at_a_constant_rate_every_law_is_the_power_law(name):
    rate = np.full(200, simulated.PEAK)
    step = np.array([10, 200])
    params = {**simulated.PARAMS[name], "A": 2.0, "alpha": 0.5}
    if name == "progress":
        params["A"] = 2.0 * simulated.PEAK**-0.5
    got = simulated.losses(simulated.make(name), params, rate, step, warmup=0)
    want = simulated.losses(laws.power_law(), simulated.PARAMS["power"], rate, step)
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("name", laws.LAWS)
def test_a_run_that_begins_at_rate_zero_has_finite_losses_and_gradients(name):
    rate = simulated.rate_of(simulated.SCHEDULES["cosine"], 100)
    assert rate[0] == 0
    law = simulated.make(name)

    def last(rate):
        params = {**simulated.PARAMS[name], "peak": simulated.PEAK}
        return law.losses(params, rate, 20, np.array([1, 50, 100])).sum()

    value, gradient = jax.value_and_grad(last)(rate)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decay": 1.0}, "decay must lie between 0 and 1, got 1.0"),
        ({"decay": 0.0}, "decay must lie between 0 and 1"),
        ({"warmup": "none"}, "warmup is 'area' or 'peak', got 'none'"),
    ],
)
def test_an_impossible_law_is_refused(changes, said):
    with pytest.raises(ValueError, match=rf"laws\.annealing_law: {said}"):
        laws.annealing_law(**changes)
