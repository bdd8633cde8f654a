"""Warm-up, stable, decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules
from optlab.schedules import shapes


def exact(step, peak, total, decay, warmup, end):
    """Float64; the 1-sqrt decay as published, 1 - sqrt(q), q the fraction done."""
    if step < warmup:
        return peak * step / warmup
    q = min(max((step - (total - decay)) / decay, 0.0), 1.0)
    return end + (peak - end) * (1 - np.sqrt(q))


@pytest.mark.parametrize("end", [0.0, 1e-4])
def test_equals_the_formula_at_every_step(end):
    rate = schedules.wsd(
        1e-3, total_steps=90, decay_steps=30, warmup_steps=10, end_value=end
    )
    want = [exact(step, 1e-3, 90, 30, 10, end) for step in range(100)]
    np.testing.assert_allclose(rate(jnp.arange(100)), want, rtol=2e-6, atol=1e-12)


def test_nothing_before_the_decay_depends_on_the_total():
    steps = jnp.arange(61)
    runs = [
        schedules.wsd(1e-3, total_steps=total, decay_steps=30, warmup_steps=10)(steps)
        for total in (90, 91, 1000, 10**9)
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


def test_a_decay_branched_off_later_is_the_same_decay():
    early = schedules.wsd(1e-3, total_steps=50, decay_steps=20)(jnp.arange(30, 51))
    late = schedules.wsd(1e-3, total_steps=80, decay_steps=20)(jnp.arange(60, 81))
    np.testing.assert_array_equal(early, late)


def test_takes_any_decay_from_one_to_nothing():
    rate = schedules.wsd(1.0, total_steps=10, decay_steps=4, decay=lambda u: u**3)
    np.testing.assert_allclose(rate(jnp.arange(6, 11)), [1, 27 / 64, 1 / 8, 1 / 64, 0])


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"decay_steps": 0}, ValueError, "decay_steps must be at least 1"),
        ({"decay_steps": 11}, ValueError, "do not fit into total_steps=10"),
        ({"decay_steps": 8, "warmup_steps": 3}, ValueError, "warmup_steps=3 do not"),
        ({"decay_steps": 0.2}, TypeError, "decay_steps counts steps"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        schedules.wsd(1.0, total_steps=10, **changes)


def test_the_whole_run_may_be_decay():
    rate = schedules.wsd(
        1.0, total_steps=8, decay_steps=8, decay=shapes.cosine, end_value=0.0
    )
    steps = jnp.arange(9)
    want = schedules.cosine(1.0, total_steps=8)(steps)
    np.testing.assert_array_equal(rate(steps), want)
