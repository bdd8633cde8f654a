"""Schedules in numbers: areas against a plain recursion, starts and half-lives."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules
from optlab.schedules import shapes


def recursion(rates, decay):
    """m_i = decay m_{i-1} + (rate_{i-1} - rate_i), summed."""
    m = total = 0.0
    for before, after in itertools.pairwise(rates):
        m = decay * m + before - after
        total += m
    return total


def test_the_areas_of_the_toy():
    toy = schedules.table([1, 1, 0.5, 0.5, 0.25])
    found = schedules.describe(toy, 5, decay=0.5)
    assert (found.area, found.annealing_area) == (3.25, 1.125)


@pytest.mark.parametrize("decay", [1.0, 0.999, 0.9])
def test_the_annealing_area_equals_the_recursion_after_the_warmup(decay):
    schedule = schedules.wsd(1.0, total_steps=300, decay_steps=90, warmup_steps=40)
    rates = np.asarray(schedule(jnp.arange(300)), np.float64)
    found = schedules.describe(schedule, 300, decay=decay)
    np.testing.assert_allclose(found.area, rates.sum())
    np.testing.assert_allclose(found.annealing_area, recursion(rates[40:], decay))


def test_one_drop_and_constant_drops_have_their_closed_forms():
    # A drop of 1/2 at update 4000 of 10,000 lasts for 6000 of them.
    step = schedules.table([1.0] * 4000 + [0.5])
    got = schedules.describe(step, 10_000).annealing_area
    np.testing.assert_allclose(got, 0.5 * (1 - 0.999**6000) / 0.001)
    ramp = schedules.describe(lambda t: 1e-3 - 1e-6 * t, 1001).annealing_area
    np.testing.assert_allclose(ramp, 0.36832773, rtol=1e-3)


def test_phases_are_found():
    wsd = schedules.describe(
        schedules.wsd(
            1e-3,
            total_steps=1000,
            decay_steps=200,
            warmup_steps=100,
            decay=shapes.linear,
            end_value=1e-4,
        ),
        1000,
    )
    assert (wsd.peak_step, wsd.decay_start) == (100, 800)
    # (1 - 0.9 h / 200) falls to a half at h = 111.1
    assert wsd.half_life == 112
    np.testing.assert_allclose([wsd.peak, wsd.end_value], [1e-3, 1e-4], rtol=1e-6)


def test_a_rate_that_never_falls_has_no_start_and_no_half_life():
    for schedule in (
        schedules.constant(0.5),
        schedules.open_wsd(0.5, decay_steps=9, warmup_steps=5),
        schedules.linear(0.5, total_steps=200, warmup_steps=150),
    ):
        found = schedules.describe(schedule, 100)
        assert (found.decay_start, found.half_life) == (None, None)
        assert found.annealing_area == 0
    assert str(found).count("never") == 2


def test_a_rate_of_zero_is_described():
    found = schedules.describe(schedules.constant(0.0), 3)
    assert (found.peak, found.area, found.half_life) == (0, 0, None)


def test_the_last_of_several_peaks_counts():
    cycles = schedules.cycles(1.0, cycle_steps=[40, 60], warmup_steps=10)
    found = schedules.describe(cycles, 100)
    assert (found.peak_step, found.decay_start, found.half_life) == (10, 50, 25)


def test_every_number_is_in_the_text():
    found = schedules.describe(schedules.cosine(0.25, total_steps=80), 80)
    text = str(found)
    assert text.splitlines()[0] == "updates          80"
    assert "0.25 from step 0" in text and "step 0" in text
    assert "40 steps" in text
    assert f"{found.area:.4g}" in text and f"{found.annealing_area:.4g}" in text
    assert dataclasses.asdict(found)["end_value"] == 0


@pytest.mark.parametrize(
    ("schedule", "steps", "decay", "error", "said"),
    [
        (schedules.constant(0.1), 0, 0.9, ValueError, "steps must be at least 1"),
        (schedules.constant(0.1), 1.5, 0.9, TypeError, "steps counts steps"),
        (schedules.constant(0.1), 5, 0.0, ValueError, "decay must be in"),
        (schedules.constant(0.1), 5, 1.1, ValueError, "decay must be in"),
        (lambda t: 1 / t, 5, 0.9, ValueError, "rate of step 0 is inf"),
    ],
)
def test_what_cannot_be_described_is_refused(schedule, steps, decay, error, said):
    with pytest.raises(error, match=rf"schedules\.describe: .*{said}"):
        schedules.describe(schedule, steps, decay=decay)
