"""A designed schedule keeps its bounds and ends lower than the usual ones."""

import numpy as np
import pytest

from optlab import laws, schedules
from tests.laws import simulated

PEAK, STEPS, WARMUP = simulated.PEAK, simulated.STEPS, 20


@pytest.fixture(scope="module", params=["progress", "annealing", "multi_power"])
def fitted(request):
    law = simulated.make(request.param)
    curves = [
        simulated.curve(law, simulated.SCHEDULES[name]) for name in ("constant", "drop")
    ]
    return laws.fit(curves, law)


def test_ends_lower_than_the_usual_schedules_and_keeps_its_bounds(fitted):
    best = laws.design(fitted, peak=PEAK, total_steps=STEPS, warmup_steps=WARMUP)
    whole = {"total_steps": STEPS, "warmup_steps": WARMUP}
    usual = {
        "designed": best,
        "constant": schedules.constant(PEAK, warmup_steps=WARMUP),
        "linear": schedules.linear(PEAK, **whole),
        "cosine": schedules.cosine(PEAK, **whole),
        "wsd": schedules.wsd(
            PEAK, decay_steps=76, decay=schedules.shapes.linear, **whole
        ),
    }
    losses = {one.name: one.loss for one in laws.rank(fitted, usual, STEPS)}
    # The best by hand may be the optimum: equal, but for the search's own accuracy.
    assert losses["designed"] <= min(losses.values()) * (1 + 1e-4)
    rate = simulated.rate_of(best, STEPS + 1)
    assert rate[0] == 0 and rate[WARMUP] == np.float32(PEAK) and rate[STEPS] == 0
    falls = -np.diff(rate[WARMUP:])
    # A straight decay over a fifth of the run; knots stand at whole steps.
    assert falls.min() >= 0 and falls.max() < 1.05 * PEAK / (0.2 * (STEPS - WARMUP))


def test_a_floor_is_reached_exactly(fitted):
    best = laws.design(fitted, peak=PEAK, total_steps=STEPS, end_value=0.002)
    rate = simulated.rate_of(best, STEPS + 5)
    assert rate[0] == np.float32(PEAK)
    assert (rate[STEPS:] == np.float32(0.002)).all()
    assert (rate >= np.float32(0.002)).all()


def test_a_law_without_annealing_holds_the_peak_as_long_as_it_may():
    law = laws.power_law()
    fitted = laws.fit(simulated.curve(law, simulated.SCHEDULES["cosine"]), law)
    best = laws.design(fitted, peak=PEAK, total_steps=STEPS)
    rate = simulated.rate_of(best)
    assert rate[: int(0.75 * STEPS)].min() > 0.95 * PEAK


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warmup_steps": 400}, "17 knots do not fit between warmup_steps=400"),
        ({"total_steps": 10}, "do not fit"),
        ({"knots": 1}, "knots must be at least 2"),
        ({"end_value": 0.02}, "end_value=0.02 must be 0 or more and below peak"),
        ({"end_value": -1.0}, "must be 0 or more"),
        ({"least_decay": 0.0}, "least_decay must lie above 0"),
        ({"least_decay": 1.5}, "least_decay must lie above 0 and at most at 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, said):
    law = laws.power_law()
    fitted = laws.fit(simulated.curve(law, simulated.SCHEDULES["constant"]), law)
    with pytest.raises(ValueError, match=f"laws.design: .*{said}"):
        laws.design(fitted, **{"peak": PEAK, "total_steps": STEPS, **changes})
