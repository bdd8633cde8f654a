"""The Gaussian process on the logarithm of the rate."""

import math
import sys

import numpy as np
import pytest

from optlab import controllers

LIMITS = {"min_rate": 1e-4, "max_rate": 1.0}


def search(kappa, trials=10, best=0.01):
    rates = [0.003]
    for _ in range(trials - 1):
        losses = [abs(math.log(rate / best)) for rate in rates]
        rates.append(controllers.next_rate(rates, losses, kappa=kappa, **LIMITS))
    return rates


def test_a_large_kappa_covers_the_range():
    rates = search(1e6)
    assert {1e-4, 1.0} <= set(rates)
    gaps = np.diff(np.sort(np.log(rates)))
    # Nine gaps in four decades: about one each if they were equal.
    assert gaps.max() < 1.8
    assert gaps.min() > 0.3


def test_a_small_kappa_stays_near_the_best():
    near = [rate for rate in search(2.0) if 0.005 < rate < 0.02]
    assert len(near) > len([rate for rate in search(1e6) if 0.005 < rate < 0.02])
    assert len(near) >= 4


def test_no_rate_is_tried_twice():
    for kappa in (0.0, 1e6):
        assert len(set(search(kappa))) == 10


def test_equal_arguments_give_equal_rates():
    assert search(1e6) == search(1e6)


@pytest.mark.parametrize("loss", [0.0, 1.0, -1e5, 1e6])
def test_losses_that_say_nothing_are_no_obstacle(loss):
    rate = controllers.next_rate([0.01, 0.1], [loss, loss], **LIMITS)
    assert 1e-4 <= rate <= 1.0


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*optlab-jax\[lab\]"):
        controllers.next_rate([0.01], [1.0], **LIMITS)
