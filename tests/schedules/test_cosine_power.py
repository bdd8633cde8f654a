"""Cosine power annealing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules


@pytest.mark.parametrize("b", [2.0, 10.0, 0.5])
def test_equals_the_formula_at_every_step(b):
    rate = schedules.cosine_power(
        1e-3, total_steps=90, warmup_steps=10, end_value=1e-4, b=b
    )
    steps = np.arange(100)
    v = (1 + np.cos(np.pi * np.clip((steps - 10) / 80, 0, 1))) / 2
    decay = 1e-4 + 9e-4 * (b**v - 1) / (b - 1)
    want = np.where(steps < 10, 1e-3 * steps / 10, decay)
    np.testing.assert_allclose(rate(steps), want, rtol=2e-6)


def test_the_continuous_curve_between_ten_epochs():
    rate = schedules.cosine_power(0.1, total_steps=9, end_value=1e-4)
    want = [0.1, 0.092555, 0.07379, 0.05142, 0.031869]
    want += [0.017741, 0.008739, 0.003531, 0.000898, 0.0001]
    np.testing.assert_allclose(rate(jnp.arange(10)), want, atol=6e-7)


@pytest.mark.parametrize("one", [1, 1.0, jnp.float32(1)])
def test_order_one_is_cosine(one):
    steps, run = jnp.arange(70), {"total_steps": 60, "warmup_steps": 6}
    cosine = schedules.cosine(1.0, **run)(steps)
    power = schedules.cosine_power(1.0, b=one, **run)(steps)
    np.testing.assert_allclose(power, cosine, rtol=2e-7)
    traced = jax.jit(lambda b: schedules.cosine_power(1.0, b=b, **run)(steps))
    np.testing.assert_allclose(traced(one), cosine, rtol=2e-7)


def test_the_gradient_in_the_order_has_no_gap_at_one():
    def rates(b):
        return schedules.cosine_power(1.0, total_steps=60, b=b)(jnp.arange(70))

    slopes = [np.asarray(jax.jacobian(rates)(b)) for b in (0.97, 1.0, 1.03)]
    assert np.isfinite(slopes).all()
    middle = (slopes[0] + slopes[2]) / 2
    np.testing.assert_allclose(slopes[1], middle, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("b", [0, -3.0, float("nan")])
def test_an_order_that_is_not_positive_is_refused(b):
    with pytest.raises(
        ValueError, match=r"schedules\.cosine_power: b must be positive"
    ):
        schedules.cosine_power(1.0, total_steps=10, b=b)
