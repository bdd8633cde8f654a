"""The accountant: what it is asked, and one answer that is known otherwise."""

import math
import re
import sys
import types

import pytest

from optlab import estimators


def test_the_accountant_is_asked_for_the_run(monkeypatch):
    asked = []

    class Accountant:
        def __init__(self, relation):
            asked.append(relation)

        def compose(self, event, count):
            asked.append((event, count))
            return self

        def get_epsilon(self, delta):
            return 1.5 + delta

    package = types.SimpleNamespace(
        GaussianDpEvent=lambda sigma: ("gaussian", sigma),
        PoissonSampledDpEvent=lambda rate, event: ("sampled", rate, event),
        NeighboringRelation=types.SimpleNamespace(ADD_OR_REMOVE_ONE="one"),
        pld=types.SimpleNamespace(PLDAccountant=Accountant),
    )
    monkeypatch.setitem(sys.modules, "dp_accounting", package)
    spent = estimators.privacy_spent(2.0, sampling_rate=0.1, steps=30, delta=0.25)
    assert spent == 1.75
    assert asked == ["one", (("sampled", 0.1, ("gaussian", 2.0)), 30)]
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=re.escape("optlab-jax[privacy]")):
        estimators.privacy_spent(1.0, sampling_rate=0.1, steps=1, delta=1e-5)


def test_one_step_on_all_data_has_the_epsilon_of_a_gaussian():
    pytest.importorskip("dp_accounting")

    def delta_of(epsilon, sigma):
        def below(x):
            return math.erfc(-x / math.sqrt(2)) / 2

        a, b = 0.5 / sigma, epsilon * sigma
        return below(a - b) - math.exp(epsilon) * below(-a - b)

    spent = estimators.privacy_spent(2.0, sampling_rate=1.0, steps=1, delta=1e-5)
    assert delta_of(spent, 2.0) == pytest.approx(1e-5, rel=1e-2)
    spent = estimators.privacy_spent(1.0, sampling_rate=0.01, steps=1000, delta=1e-5)
    assert spent == pytest.approx(1.828, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": math.inf}, "noise_multiplier must be finite, got inf"),
        ({"sampling_rate": 64}, "sampling_rate must be above 0, at most 1, got 64"),
        ({"delta": math.nan}, "delta must be above 0, below 1, got nan"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be above 0, got 0.0"),
        ({"sampling_rate": 1.5}, "sampling_rate must be above 0, at most 1, got 1.5"),
        ({"steps": 0}, "steps must be above 0, got 0"),
        ({"delta": 1}, "delta must be above 0, below 1, got 1"),
    ],
)
def test_bad_input_is_named(changes, message):
    run = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 1, "delta": 1e-5}
    with pytest.raises(ValueError, match=re.escape(message)):
        estimators.privacy_spent(**{**run, **changes})


def test_a_number_of_steps_is_an_integer():
    with pytest.raises(TypeError, match=r"steps must be an integer, got 10\.5"):
        estimators.privacy_spent(1.0, sampling_rate=0.1, steps=10.5, delta=1e-5)
