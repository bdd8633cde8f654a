"""Polynomial decay."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules


@pytest.mark.parametrize("power", [0.5, 1.5, 3.0])
def test_equals_the_formula_at_every_step(power):
    rate = schedules.polynomial(
        1e-3, total_steps=50, warmup_steps=7, end_value=1e-4, power=power
    )
    steps = np.arange(55)
    left = (50 - np.minimum(steps, 50)) / 43
    want = np.where(steps < 7, 1e-3 * steps / 7, 1e-4 + 9e-4 * left**power)
    np.testing.assert_allclose(rate(steps), want, rtol=2e-6)


def test_power_one_is_linear():
    steps, run = jnp.arange(40), {"total_steps": 30, "end_value": 0.125}
    linear = schedules.linear(1.0, **run)
    np.testing.assert_array_equal(
        schedules.polynomial(1.0, **run)(steps), linear(steps)
    )


def test_equals_optax():
    ours = schedules.polynomial(1e-3, total_steps=60, end_value=1e-4, power=2.0)
    theirs = optax.polynomial_schedule(1e-3, 1e-4, 2.0, 60)
    steps = jnp.arange(70)
    np.testing.assert_allclose(ours(steps), theirs(steps), rtol=2e-6)


@pytest.mark.parametrize("power", [0, -2.0, float("nan")])
def test_a_power_that_is_not_positive_is_refused(power):
    said = r"schedules\.polynomial: power must be positive"
    with pytest.raises(ValueError, match=said):
        schedules.polynomial(1.0, total_steps=10, power=power)
