"""The multi-power law equals its formula, block by block too."""

import numpy as np
import pytest

from optlab import laws
from tests.laws import simulated


def transcription(params, rate, warmup, t):
    """The loss after t updates, term by term."""
    area = np.cumsum(rate)
    gain = 0.0
    for k in range(warmup + 1, t):
        since = rate[k:t].sum()
        fall = rate[k - 1] - rate[k]
        speed = params["C"] * rate[k] ** -params["gamma"]
        gain += fall * (1 - (1 + speed * since) ** -params["beta"])
    base = params["L0"] + params["A"] * area[t - 1] ** -params["alpha"]
    return base - params["B"] * gain


def test_equals_the_sum_of_five_rates():
    rate = np.array([1.0, 1.0, 0.5, 0.5, 0.25])
    params = {"L0": 0.0, "A": 0.0, "alpha": 0.5, "B": 1.0}
    params |= {"C": 1.0, "beta": 0.5, "gamma": 0.5}
    law = laws.multi_power_law()
    got = simulated.losses(law, params, rate, np.arange(1, 6), warmup=0)
    want = [0, 0, 0.11731657, 0.17820287, 0.24533380]
    np.testing.assert_allclose(-got, want, atol=5e-9)


@pytest.mark.parametrize("name", ["cosine", "wsd", "drop"])
def test_equals_its_formula(name):
    # Not to the last step: the rate of wsd is 0 there, whose power has no limit.
    rate = simulated.rate_of(simulated.SCHEDULES[name])[:399]
    params, step = simulated.PARAMS["multi_power"], np.array([15, 100, 250, 399])
    got = simulated.losses(laws.multi_power_law(), params, rate, step)
    want = [transcription(params, rate, 20, t) for t in step]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_falls_taken_together_change_little():
    steps = 3000
    rate = 0.02 * (1 - np.arange(steps) / steps)
    params, step = simulated.PARAMS["multi_power"], np.array([1000, 2500, 2990])
    got = simulated.losses(laws.multi_power_law(), params, rate, step, warmup=0)
    want = [transcription(params, rate, 0, t) for t in step]
    np.testing.assert_allclose(got, want, rtol=1e-4)
