"""The cosine schedule against float64, its identities, and Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules


def exact(step, peak, total, warmup=0, start=0.0, end=0.0):
    """The published formula in float64."""
    step = np.asarray(step, np.float64)
    p = np.clip((step - warmup) / (total - warmup), 0, 1)
    # 1 + cos(pi p) cancels near the end even in float64: its half-angle form.
    decay = end + (peak - end) * np.sin(np.pi / 2 * (1 - p)) ** 2
    return np.where(
        step < warmup, start + (peak - start) * step / max(warmup, 1), decay
    )


@pytest.mark.parametrize("warmup", [0, 10])
def test_equals_the_formula_at_every_step(warmup):
    arguments = {"total_steps": 200, "warmup_steps": warmup}
    got = schedules.cosine(1e-3, **arguments, init_value=1e-5, end_value=1e-4)
    want = exact(np.arange(220), 1e-3, 200, warmup, 1e-5, 1e-4)
    np.testing.assert_allclose(got(jnp.arange(220)), want, rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(got(jnp.arange(220)), want, rtol=1e-14)


@pytest.mark.parametrize("total", [1000, 10**6, 10**7, 10**9, 2**31 - 1])
def test_keeps_its_relative_accuracy_to_the_last_step(total):
    rate = schedules.cosine(1e-3, total_steps=total)
    left = np.array([1, 2, 3, 10, 100, 999])
    # In integers: the formula's own 1 - t / T would cancel even in float64.
    want = 1e-3 * np.sin(np.pi / 2 * left / total) ** 2
    got = np.asarray(rate(jnp.asarray(total - left, jnp.int32)))
    np.testing.assert_allclose(got, want, rtol=2e-6)
    assert (got > 0).all()


def test_where_optax_loses_the_tail():
    total = 10**6
    theirs = optax.cosine_decay_schedule(1e-3, total)(total - 1)
    ours = schedules.cosine(1e-3, total_steps=total)(total - 1)
    assert theirs == 0
    np.testing.assert_allclose(ours, 2.4674e-15, rtol=1e-4)


def test_equals_optax_where_optax_is_accurate():
    ours = schedules.cosine(1e-3, total_steps=300, warmup_steps=30, end_value=1e-4)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 30, 300, 1e-4)
    steps = jnp.arange(320)
    np.testing.assert_allclose(ours(steps), theirs(steps), rtol=1e-5, atol=1e-9)


def test_is_symmetric_about_its_middle():
    rates = np.asarray(schedules.cosine(1.0, total_steps=64)(jnp.arange(65)))
    np.testing.assert_allclose(rates + rates[::-1], 1, rtol=1e-6)
