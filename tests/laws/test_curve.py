"""A curve holds the rate of every update, and refuses what no run can give."""

import numpy as np
import pytest

from optlab import laws


def sampled(step, rate, **more):
    return laws.Curve.from_samples(step, rate, np.full(len(step), 3.0), **more)


def test_rates_between_samples_are_straight_lines():
    curve = sampled([0, 4, 8, 12, 16], [8.0, 4.0, 2.0, 1.5, 0.0])
    np.testing.assert_allclose(curve.rate[:9], [8, 7, 6, 5, 4, 3.5, 3, 2.5, 2])
    assert len(curve.rate) == 16
    assert curve.warmup_steps == 0


def test_a_jump_between_flat_stretches_is_put_half_way():
    step = [100, 110, 120, 130, 140]
    curve = sampled(step, [3.0, 3.0, 3.0, 1.0, 1.0], warmup_steps=50)
    assert (curve.rate[50:125] == 3).all() and (curve.rate[125:] == 1).all()
    up = sampled(step, [1.0, 1.0, 3.0, 3.0, 3.0], warmup_steps=50)
    assert up.rate[114] == 1 and up.rate[115] == 3


def test_the_start_of_a_linear_decay_is_not_a_jump():
    curve = sampled([0, 10, 20, 30, 40, 50], [5.0, 5.0, 5.0, 4.5, 3.5, 2.5])
    np.testing.assert_allclose(np.diff(curve.rate[20:30]), -0.05)


def test_the_warmup_before_the_first_sample_is_linear():
    curve = sampled([4, 6, 8, 10, 12], [2.0] * 5)
    np.testing.assert_allclose(curve.rate[:6], [0, 0.5, 1, 1.5, 2, 2])
    assert curve.warmup_steps == 4
    shorter = sampled([4, 6, 8, 10, 12], [2.0] * 5, warmup_steps=2)
    np.testing.assert_allclose(shorter.rate[:5], [0, 1, 2, 2, 2])
    none = sampled([4, 6, 8, 10, 12], [2.0] * 5, warmup_steps=0)
    assert (none.rate == 2).all()


def test_a_warmup_inside_the_samples_is_found():
    curve = sampled([0, 5, 10, 15, 20], [0.0, 1.0, 2.0, 1.0, 0.0])
    assert (curve.warmup_steps, curve.peak) == (10, 2.0)


def test_whole_numbers_in_floats_are_steps():
    curve = laws.Curve(np.arange(1.0, 7.0), np.ones(6), np.ones(6))
    assert curve.step.dtype == np.int64


def test_rates_may_be_sampled_elsewhere_than_losses():
    curve = laws.Curve.from_samples(
        [10, 20, 30, 40, 50],
        [0.0, 4.0, 4.0, 0.0],
        np.full(5, 3.0),
        rate_step=[0, 4, 20, 60],
    )
    np.testing.assert_allclose(curve.rate[:6], [0, 1, 2, 3, 4, 4])
    np.testing.assert_allclose(curve.rate[20:23], [4, 3.9, 3.8])
    assert (curve.warmup_steps, len(curve.rate)) == (4, 50)


GOOD = {"step": [1, 2, 3, 4, 5], "loss": [5.0, 4, 3, 2, 1], "rate": [1.0] * 5}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": [1, 2, 2, 4, 5]}, r"step 2 follows step 2 \(sample 2\); sort"),
        ({"step": [1, 3, 2, 4, 5]}, "step 2 follows step 3"),
        ({"step": [-1, 2, 3, 4, 5]}, "first step is -1"),
        ({"step": [1, 2, 3, 4, 5.5]}, "steps are whole numbers"),
        ({"step": [1, 2, 3, 4, float("nan")]}, "steps are whole numbers"),
        ({"step": [1, 2, 3, 4]}, "4 steps and 5 losses"),
        ({"step": [[1, 2, 3, 4, 5]]}, r"step has shape \(1, 5\)"),
        ({"loss": [5, 4, float("nan"), 2, 1]}, "the loss at sample 2, step 3 is nan"),
        ({"loss": [5, 4, 0, 2, 1]}, "must be finite and above 0"),
        ({"rate": [1, 1, -1, 1, 1]}, "the rate at update 2 is -1.0"),
        ({"rate": [1, 1, 1, 1]}, "4 rates, but the last loss was measured after 5"),
        ({"rate": [0] * 5}, "every rate is 0"),
    ],
)
def test_what_no_run_can_give_is_refused(changes, said):
    with pytest.raises(ValueError, match=rf"laws\.Curve 'mine': .*{said}"):
        laws.Curve(**{**GOOD, **changes}, name="mine")


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="3 samples; at least 5 are needed"):
        laws.Curve(np.arange(3), np.ones(3), np.ones(3))


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="first sample stands at step 4"):
        sampled([4, 6, 8, 10, 12], [2.0] * 5, warmup_steps=5)
    with pytest.raises(ValueError, match=r"step has shape \(5,\) and rate \(4,\)"):
        laws.Curve.from_samples([4, 6, 8, 10, 12], [2.0] * 4, np.ones(5))
