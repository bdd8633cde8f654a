"""A fit finds the law behind curves, and says what the curves do not tell."""

import dataclasses

import numpy as np
import pytest

from optlab import laws
from tests.laws import simulated


def curves(law, *names, noise=0.0):
    return [
        simulated.curve(law, simulated.SCHEDULES[name], noise=noise, seed=i, name=name)
        for i, name in enumerate(names)
    ]


def free(law):
    """The law without its priors, which would pull a fit away from the truth."""
    bare = [dataclasses.replace(p, prior=None) for p in law.parameters]
    return dataclasses.replace(law, parameters=tuple(bare))


@pytest.mark.parametrize("name", ["power", "annealing"])
def test_finds_the_parameters_of_exact_curves(name):
    law = simulated.make(name)
    fitted = laws.fit(curves(law, "constant", "cosine"), law)
    for key, value in simulated.PARAMS[name].items():
        np.testing.assert_allclose(fitted.params[key], value, rtol=2e-3)
    assert fitted.scatter < 1e-5
    assert (fitted.steps, round(fitted.peak, 6)) == (400, simulated.PEAK)


def test_three_different_decays_tell_the_whole_progress_law():
    law = free(simulated.make("progress"))
    fitted = laws.fit(curves(law, "constant", "cosine", "wsd", "drop"), law)
    for key, value in simulated.PARAMS["progress"].items():
        np.testing.assert_allclose(fitted.params[key], value, rtol=0.02)


def test_two_curves_and_a_prior_predict_a_third():
    law = laws.progress_law()
    fitted = laws.fit(curves(law, "constant", "cosine", noise=1e-3))
    assert fitted.law.name == "progress"
    unseen = simulated.curve(law, simulated.SCHEDULES["wsd"])
    found = laws.errors(laws.compare(fitted, unseen).loss, unseen.loss)
    assert found["max_relative_error"] < 0.01


def test_the_multi_power_law_predicts_its_own_curves():
    law = simulated.make("multi_power")
    fitted = laws.fit(curves(law, "constant", "cosine", "drop"), law)
    unseen = simulated.curve(law, simulated.SCHEDULES["wsd"])
    found = laws.errors(laws.compare(fitted, unseen).loss, unseen.loss)
    assert found["max_relative_error"] < 0.005


def test_the_intervals_of_noisy_curves_hold_the_truth_and_shrink_with_the_noise():
    law = simulated.make("annealing")
    widths = []
    for noise in (4e-3, 1e-3):
        fitted = laws.fit(curves(law, "constant", "cosine", noise=noise), law)
        for key, value in simulated.PARAMS["annealing"].items():
            low, high = fitted.intervals[key]
            # twice the half of a 90 % interval: more than three deviations
            middle, side = (low + high) / 2, high - low
            assert abs(value - middle) < side
        low, high = fitted.intervals["C"]
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_constant_rates_alone_do_not_tell_the_gain_from_annealing():
    law = simulated.make("annealing")
    fitted = laws.fit(curves(law, "constant"), law)
    assert any(text.startswith("C is not identified") for text in fitted.warnings)
    both = laws.fit(curves(law, "constant", "cosine"), law)
    assert not any(text.startswith("C ") for text in both.warnings)


def test_a_parameter_that_rests_on_its_prior_is_named():
    fitted = laws.fit(curves(laws.progress_law(), "constant"))
    assert any(text.startswith("tau rests on its prior") for text in fitted.warnings)


def test_one_outlier_does_not_move_a_fit():
    law = simulated.make("annealing")
    clean = curves(law, "constant", "cosine")
    loss = clean[0].loss.copy()
    loss[40] *= 1.5
    spoilt = [dataclasses.replace(clean[0], loss=loss), clean[1]]
    fitted = laws.fit(spoilt, law)
    for key, value in simulated.PARAMS["annealing"].items():
        np.testing.assert_allclose(fitted.params[key], value, rtol=0.02)


def test_the_scale_of_the_rates_does_not_matter():
    law = simulated.make("progress")
    given = curves(law, "constant", "cosine", noise=1e-3)
    small = [dataclasses.replace(c, rate=c.rate * 1e-4) for c in given]
    one, other = laws.fit(given, law), laws.fit(small, law)
    np.testing.assert_allclose(one.params["tau"], other.params["tau"], rtol=0.02)
    np.testing.assert_allclose(one.params["L0"], other.params["L0"], rtol=0.02)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([], ValueError, "no curve"),
        (["constant"], TypeError, "a curve is a laws.Curve"),
    ],
)
def test_what_is_no_curve_is_refused(given, error, said):
    with pytest.raises(error, match=f"laws.fit: {said}"):
        laws.fit(given)


def test_curves_of_different_peaks_are_refused():
    law = laws.power_law()
    one, other = curves(law, "constant", "cosine")
    other = dataclasses.replace(other, rate=2 * other.rate)
    with pytest.raises(ValueError, match=r"'constant' has peak .* a law holds for one"):
        laws.fit([one, other], law)


def test_losses_of_the_warmup_do_not_count():
    law = simulated.make("annealing")
    one, other = curves(law, "constant", "cosine")
    early = np.concatenate([[2, 9], one.step]), np.concatenate([[9.0, 8.0], one.loss])
    longer = laws.Curve(*early, one.rate)
    assert laws.fit([longer, other], law).params == pytest.approx(
        laws.fit([one, other], law).params, rel=1e-4
    )


def test_more_parameters_than_losses_are_refused():
    curve = laws.Curve(np.arange(1, 6), np.ones(5), np.ones(5))
    with pytest.raises(ValueError, match="5 losses after the warm-up for the 6"):
        laws.fit(curve)
