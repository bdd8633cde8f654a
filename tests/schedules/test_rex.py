"""REX."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules


def exact(step, k, total, warmup, peak, end):
    """As published, z the fraction done: (1 - z) / (1/2 + (1 - z) / 2) for k = 1/2."""
    z = np.clip((step - warmup) / (total - warmup), 0, 1)
    decay = end + (peak - end) * (1 - z) / (k + (1 - k) * (1 - z))
    return np.where(step < warmup, peak * step / max(warmup, 1), decay)


@pytest.mark.parametrize("k", [0.5, 0.1, 3.0])
def test_equals_the_formula_at_every_step(k):
    rate = schedules.rex(1e-3, total_steps=90, warmup_steps=10, end_value=1e-4, k=k)
    steps = np.arange(100)
    want = exact(steps, k, 90, 10, 1e-3, 1e-4)
    np.testing.assert_allclose(rate(steps), want, rtol=1e-6)


def test_the_default_is_the_papers_not_the_widely_copied_one():
    steps = jnp.arange(20)
    run = {"total_steps": 18}
    default = schedules.rex(1.0, **run)(steps)
    np.testing.assert_array_equal(default, schedules.rex(1.0, k=0.5, **run)(steps))
    assert (schedules.rex(1.0, k=0.1, **run)(steps[1:18]) > default[1:18]).all()


def test_k_of_one_is_linear():
    steps, run = jnp.arange(40), {"total_steps": 30, "end_value": 0.125}
    rex, linear = schedules.rex(1.0, k=1.0, **run), schedules.linear(1.0, **run)
    np.testing.assert_allclose(rex(steps), linear(steps), rtol=2e-7)


@pytest.mark.parametrize("k", [0, -1, float("inf"), np.float32("nan")])
def test_k_that_is_not_positive_is_refused(k):
    with pytest.raises(
        ValueError, match=rf"schedules\.rex: k must be positive, got {k}"
    ):
        schedules.rex(1.0, total_steps=10, k=k)
