"""Inverse square root."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules


@pytest.mark.parametrize("timescale", [None, 25, 2.5])
def test_equals_the_formula_at_every_step(timescale):
    rate = schedules.inverse_sqrt(0.3, warmup_steps=8, timescale=timescale)
    steps, scale = np.arange(200), 8 if timescale is None else timescale
    decay = 0.3 * np.sqrt(scale / np.maximum(steps - 8 + scale, scale))
    want = np.where(steps < 8, 0.3 * steps / 8, decay)
    np.testing.assert_allclose(rate(steps), want, rtol=1e-6)


def test_falls_with_the_root_of_the_step_up_to_the_last_count():
    rate = schedules.inverse_sqrt(1.0, warmup_steps=100)
    for step in (100, 400, 10**4, 10**9, 2**31 - 1):
        np.testing.assert_allclose(rate(step), np.sqrt(100 / step), rtol=1e-6)


def test_without_a_warmup_the_timescale_is_ten_thousand_steps():
    rate = schedules.inverse_sqrt(1.0)
    assert rate(0) == 1.0
    np.testing.assert_allclose(rate(jnp.array([10**4, 3 * 10**4])), [0.5**0.5, 0.5])


@pytest.mark.parametrize("timescale", [0, -5.0, float("inf")])
def test_a_timescale_that_is_not_positive_is_refused(timescale):
    said = r"schedules\.inverse_sqrt: timescale must be positive"
    with pytest.raises(ValueError, match=said):
        schedules.inverse_sqrt(1.0, timescale=timescale)
