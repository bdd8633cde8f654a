"""A prediction equals the law, has an honest interval, and warns when far from home."""

import dataclasses

import numpy as np
import pytest

from optlab import laws
from tests.laws import simulated

COSINE, WSD = simulated.SCHEDULES["cosine"], simulated.SCHEDULES["wsd"]


def fit(noise=0.0, seed=0, facts=None):
    law = simulated.make("annealing")
    curves = [
        simulated.curve(law, simulated.SCHEDULES[name], noise=noise, seed=seed + i)
        for i, name in enumerate(("constant", "cosine"))
    ]
    return laws.fit(curves, law, facts=facts)


def test_equals_the_law_for_a_schedule_and_for_its_rates():
    fitted = fit()
    found = laws.predict(fitted, WSD, 400)
    rate = simulated.rate_of(WSD)
    want = simulated.losses(fitted.law, fitted.params, rate, np.arange(1, 401))
    np.testing.assert_allclose(found.loss, want, rtol=1e-9)
    np.testing.assert_allclose(laws.predict(fitted, rate, 400).loss, want, rtol=1e-9)
    np.testing.assert_array_equal(found.step, np.arange(1, 401))
    np.testing.assert_allclose(laws.predict(fitted, rate, 90).loss, want[:90])


def test_compare_gives_the_prediction_at_the_steps_of_a_curve():
    fitted = fit()
    curve = simulated.curve(fitted.law, WSD)
    found = laws.compare(fitted, curve)
    np.testing.assert_array_equal(found.step, curve.step)
    whole = laws.predict(fitted, curve.rate, 400)
    np.testing.assert_allclose(found.loss, whole.loss[curve.step - 1], rtol=1e-9)


def test_most_noisy_losses_of_an_unseen_run_lie_in_the_interval():
    inside = []
    for seed in range(5):
        fitted = fit(noise=3e-3, seed=10 * seed)
        curve = simulated.curve(fitted.law, WSD, noise=3e-3, seed=10 * seed + 7)
        found = laws.compare(fitted, curve)
        assert (found.low < found.loss).all() and (found.loss < found.high).all()
        inside.append((found.low < curve.loss) & (curve.loss < found.high))
    # Twice the scatter: 1.645 x 2 deviations hold 99.9 % of normal noise.
    assert np.mean(inside) > 0.97
    narrow = laws.compare(fit(noise=3e-4), curve)
    assert np.mean(narrow.high - narrow.low) < 0.3 * np.mean(found.high - found.low)


def test_runs_unlike_the_fitted_ones_warn():
    fitted = fit(facts={"batch": 32, "model": "small"})
    with pytest.warns(laws.ExtrapolationWarning, match="2000 steps are more than 3"):
        laws.predict(fitted, simulated.SCHEDULES["constant"], 2000)
    with pytest.warns(laws.ExtrapolationWarning, match="the peak is 0.03"):
        laws.predict(fitted, np.full(400, 0.03), 400)
    with pytest.warns(laws.ExtrapolationWarning, match="batch is 64 and was 32"):
        laws.predict(fitted, WSD, 400, facts={"batch": 64, "model": "small"})
    # Warnings are errors in tests: what is like the fit does not warn.
    laws.predict(fitted, WSD, 400, facts={"batch": 32})
    laws.predict(fitted, simulated.SCHEDULES["constant"], 1200)


@pytest.mark.parametrize(
    ("schedule", "steps", "said"),
    [
        (WSD, 0, "steps must be a whole number above 0, got 0"),
        (WSD, 1.5, "steps must be a whole number"),
        (WSD, True, "steps must be a whole number"),
        (np.ones(5), 6, r"rates have shape \(5,\); one for each of 6"),
        (np.ones((5, 5)), 5, "one for each of 5 updates"),
        (np.array([0.1, np.nan]), 2, "the rate of update 1 is nan"),
        (np.array([0.1, -0.1]), 2, "the rate of update 1 is -0.1"),
        (np.zeros(3), 3, "not all 0"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, steps, said):
    with pytest.raises(ValueError, match=f"laws.predict: .*{said}"):
        laws.predict(fit(), schedule, steps)


def test_errors_are_fractions_of_the_measured_loss():
    found = laws.errors([2.0, 1.1, 1.0], [2.0, 1.0, 1.25])
    assert found == pytest.approx(
        {
            "r2": 1
            - (0.01 + 0.0625) / np.sum((np.array([2, 1, 1.25]) - 4.25 / 3) ** 2),
            "mean_relative_error": 0.1,
            "max_relative_error": 0.2,
            "final_relative_error": 0.2,
        }
    )
    assert laws.errors([1.0, 1.0], [1.0, 1.0])["r2"] == 1
    assert laws.errors([1.0, 1.1], [1.0, 1.0])["r2"] == 0


@pytest.mark.parametrize(
    ("predicted", "actual", "said"),
    [
        ([1.0], [1.0, 2.0], "shapes"),
        ([], [], "shapes"),
        ([np.nan], [1.0], "not finite"),
        ([1.0], [0.0], "not positive"),
    ],
)
def test_losses_without_an_error_are_refused(predicted, actual, said):
    with pytest.raises(ValueError, match=f"laws.errors: .*{said}"):
        laws.errors(predicted, actual)


def test_rank_and_choose_order_by_the_final_loss():
    fitted = fit(noise=1e-3)
    given = {name: simulated.SCHEDULES[name] for name in ("constant", "wsd", "cosine")}
    ranked = laws.rank(fitted, given, 400)
    ends = {name: laws.predict(fitted, s, 400) for name, s in given.items()}
    assert [row.name for row in ranked] == sorted(
        ends, key=lambda name: ends[name].loss[-1]
    )
    for row in ranked:
        end = ends[row.name]
        assert tuple(row)[1:] == (end.loss[-1], end.low[-1], end.high[-1])
    choice = laws.choose(fitted, given, 400)
    assert choice.best == ranked[0]
    assert choice.rivals == tuple(
        row.name for row in ranked[1:] if row.loss < ranked[0].high
    )
    twin = laws.choose(fitted, {"a": WSD, "b": WSD}, 400)
    assert twin.rivals == ("b",)
    with pytest.raises(ValueError, match="no schedule; give one"):
        laws.rank(fitted, {}, 400)


def test_a_fitted_law_survives_json():
    fitted = fit(noise=1e-3, facts={"batch": 32})
    again = laws.from_json(laws.to_json(fitted))
    for one, other in zip(
        vars(laws.predict(fitted, WSD, 400)).values(),
        vars(laws.predict(again, WSD, 400)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    for field in dataclasses.fields(fitted):
        if field.name not in ("law", "covariance"):
            assert getattr(fitted, field.name) == getattr(again, field.name)
    assert again.law.settings == {"decay": 0.95, "warmup": "area"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "this is no fitted law"),
        ({"format": "x"}, "this is no fitted law"),
        ({"law": "other"}, "'other' is missing or unknown"),
        ({"params": {"L0": 1.0}}, "'A' is missing"),
        ({"params": {"L0": None, "A": 1, "alpha": 1, "C": 1}}, "float"),
        ({"peak": float("nan")}, "not finite"),
        ({"peak": 0.0}, "not above 0"),
        ({"steps": 0}, "not above 0"),
        ({"covariance": [1.0]}, "reshape"),
        ({"settings": {"decay": 2}}, "decay must lie"),
    ],
)
def test_what_is_no_saved_law_is_refused(change, said):
    saved = change and {**laws.to_json(fit()), **change}
    with pytest.raises(ValueError, match=f"laws.from_json: .*{said}"):
        laws.from_json(saved)


def test_a_law_of_ones_own_has_no_json():
    fitted = fit()
    own = dataclasses.replace(fitted.law, name="mine")
    with pytest.raises(ValueError, match="'mine' is not one of progress, annealing"):
        laws.to_json(dataclasses.replace(fitted, law=own))
