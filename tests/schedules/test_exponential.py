"""Exponential decay."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules
from tests import same_bits

RUN = {"total_steps": 90, "warmup_steps": 10}


def test_equals_the_formula_at_every_step():
    rate = schedules.exponential(1e-3, end_value=1e-6, **RUN)
    steps = np.arange(100)
    decay = 1e-3 * 1e-3 ** np.clip((steps - 10) / 80, 0, 1)
    want = np.where(steps < 10, 1e-3 * steps / 10, decay)
    np.testing.assert_allclose(rate(steps), want, rtol=2e-6)


def test_every_step_divides_by_the_same_number():
    rates = schedules.exponential(2.0, total_steps=64, end_value=0.5)(jnp.arange(65))
    np.testing.assert_allclose(rates[1:] / rates[:-1], 0.25 ** (1 / 64), rtol=1e-6)
    assert rates[0] == 2.0 and rates[-1] == 0.5


def test_equals_optax_given_by_its_rate_of_decay():
    ours = schedules.exponential(1e-3, total_steps=50, end_value=1e-5)
    theirs = optax.exponential_decay(1e-3, 50, 1e-2)
    steps = jnp.arange(51)
    np.testing.assert_allclose(ours(steps), theirs(steps), rtol=3e-6)


def test_a_peak_at_its_end_value_is_constant():
    rates = schedules.exponential(1e-3, end_value=1e-3, **RUN)(jnp.arange(10, 95))
    same_bits.require(rates, np.float32(1e-3))


@pytest.mark.parametrize("end_value", [0, 0.0, -1e-3, jnp.zeros(())])
def test_an_end_value_that_it_cannot_reach_is_refused(end_value):
    said = r"schedules\.exponential: end_value must be positive.*never reaches 0"
    with pytest.raises(ValueError, match=said):
        schedules.exponential(1e-3, end_value=end_value, **RUN)
    with pytest.raises(TypeError, match="end_value"):
        schedules.exponential(1e-3, **RUN)


def test_an_end_value_above_the_peak_is_refused():
    with pytest.raises(ValueError, match="lies above the peak"):
        schedules.exponential(1e-3, end_value=2e-3, **RUN)
