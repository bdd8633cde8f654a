"""The three tests of a batch size: their formulas, bias, bounds, bad numbers."""

import math

import pytest

from optlab import controllers

WIDE = {"max_growth": math.inf}
AS_WRITTEN = {**WIDE, "debias": False}


def test_without_bias_and_bounds_they_are_the_published_formulas():
    assert controllers.norm_test(8, 2.0, 30.0, eta=0.1, **AS_WRITTEN) == 1500
    # Var <g_i, g> = 6 is along = 3 at a squared norm of 2: 6 / (theta^2 4).
    along = controllers.inner_product_test(8, 2.0, 30.0, 3.0, theta=0.3, **AS_WRITTEN)
    assert along == math.ceil(6 / (0.09 * 4))
    both = {"theta": 0.3, "nu": 0.5, **AS_WRITTEN}
    assert controllers.augmented_test(8, 2.0, 30.0, 3.0, **both) == 27 / (0.25 * 2)
    assert controllers.augmented_test(8, 2.0, 6.0, 3.0, **both) == along


@pytest.mark.parametrize("n", [16, 64, 256])
def test_noise_in_the_squared_norm_asks_for_too_little(n):
    """A true ratio of 10, as it is measured on average in batches of n."""
    square = 1 + 10 / n
    wanted = controllers.norm_test(n, square, 10.0, eta=0.05, **WIDE)
    assert wanted == pytest.approx(4000, abs=1)
    biased = controllers.norm_test(n, square, 10.0, eta=0.05, **AS_WRITTEN)
    assert biased == math.ceil(round(10 / square / 0.05**2, 6))


def test_in_pure_noise_a_test_multiplies_by_the_same_whatever_the_noise():
    for variance in (1e-3, 1.0, 1e3):
        for n in (16, 64):
            numbers = (n, variance / n, variance)
            asked = controllers.norm_test(*numbers, eta=0.1, **AS_WRITTEN)
            assert asked == pytest.approx(100 * n, abs=1)
            assert controllers.norm_test(*numbers, eta=0.1) == 2 * n


def test_a_batch_never_shrinks_and_growth_is_bounded():
    quiet = (64, 1.0, 1e-3)
    assert controllers.norm_test(*quiet) == 64
    assert controllers.augmented_test(*quiet, 1e-4) == 64
    loud = (64, 1.0, 1e9)
    assert controllers.norm_test(*loud) == 128
    assert controllers.norm_test(*loud, max_growth=1.5) == 96
    assert controllers.norm_test(*loud, max_batch_size=100) == 100
    assert controllers.inner_product_test(*loud, 1e9, max_batch_size=64) == 64


def test_zeros_and_what_is_not_finite_decide_as_stated():
    assert controllers.norm_test(8, 0.0, 0.0) == 8
    assert controllers.norm_test(8, 0.0, 1.0) == 16
    assert controllers.norm_test(8, 0.0, 1.0, **WIDE) == 8
    for bad in (math.nan, math.inf):
        assert controllers.norm_test(8, bad, 1.0) == 8
        assert controllers.norm_test(8, 1.0, bad) == 8
        assert controllers.augmented_test(8, 1.0, 1e3, bad) == 8


@pytest.mark.parametrize(
    ("n", "more", "said"),
    [
        (0, {}, "norm_test: batch_size must be at least 1, got 0"),
        (8, {"eta": 0.0}, r"norm_test: eta must be above 0 and finite, got 0\.0"),
        (8, {"max_growth": 0.5}, r"max_growth must be at least 1, got 0\.5"),
        (8, {"max_batch_size": 4}, "max_batch_size=4 is below the batch size 8"),
    ],
)
def test_what_makes_no_sense_is_refused(n, more, said):
    with pytest.raises(ValueError, match=said):
        controllers.norm_test(n, 1.0, 1.0, **more)
