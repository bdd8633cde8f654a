"""Every schedule of the catalogue keeps the contract of steps.

The step counts the updates already applied. At `warmup_steps` the rate is exactly the
peak, from `total_steps` on exactly the end value, and in between it never rises.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import catalog

LAST = 2**31 - 1
PEAK = 0.3
ROWS = catalog.rows("schedules")


def takes(row, argument):
    return argument in inspect.signature(row.build).parameters


def with_argument(argument):
    rows = [row for row in ROWS if takes(row, argument)]
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def build(row, **changes):
    return row.build(**{**row.defaults, "peak": PEAK, **changes})


def counts(row):
    total = row.defaults.get("total_steps", 100)
    grid = np.unique(np.linspace(0, total + 3, 60).astype(int))
    return np.append(grid, [2**24, 2**24 + 1, LAST]).astype(np.int32)


@with_argument("warmup_steps")
@pytest.mark.parametrize("warmup", [0, 1, 7, 50])
def test_at_the_end_of_the_warmup_the_rate_is_exactly_the_peak(row, warmup):
    schedule = build(row, warmup_steps=warmup)
    assert schedule(warmup) == np.float32(PEAK)
    assert jax.jit(schedule)(jnp.int32(warmup)) == np.float32(PEAK)


@with_argument("warmup_steps")
def test_the_warmup_starts_at_the_initial_value_and_rises_steadily(row):
    schedule = build(row, warmup_steps=7, init_value=0.125)
    rates = np.array([schedule(t) for t in range(8)])
    assert rates[0] == 0.125
    np.testing.assert_allclose(np.diff(rates), (PEAK - 0.125) / 7, rtol=1e-5)


@with_argument("end_value")
@pytest.mark.parametrize("end_value", [0.0, 0.01])
def test_from_the_last_step_on_the_rate_is_exactly_the_end_value(row, end_value):
    schedule, total = build(row, end_value=end_value), row.defaults["total_steps"]
    for count in (total, total + 1, 2**24 + 1, LAST):
        assert schedule(count) == np.float32(end_value)
        assert jax.jit(schedule)(jnp.int32(count)) == np.float32(end_value)
    assert schedule(total - 1) > np.float32(end_value)


@every_row
def test_after_the_warmup_the_rate_never_rises(row):
    schedule = build(row)
    start = row.defaults.get("warmup_steps", 0)
    rates = jax.vmap(schedule)(jnp.arange(start, start + 1200))
    assert (np.diff(rates) <= 0).all()
    assert rates[0] == np.float32(PEAK)


@every_row
def test_the_rate_is_finite_and_within_bounds_at_every_count(row):
    rates = jax.vmap(build(row))(jnp.asarray(counts(row)))
    assert np.isfinite(rates).all()
    assert (rates >= 0).all() and (rates <= np.float32(PEAK)).all()


@every_row
def test_int_int32_traced_and_vmapped_counts_agree(row):
    schedule = build(row)
    compiled = jax.jit(schedule)
    vmapped = jax.vmap(schedule)(jnp.asarray(counts(row)))
    for count, from_vmap in zip(counts(row), vmapped, strict=True):
        wanted = schedule(int(count))
        for got in (schedule(jnp.int32(count)), compiled(jnp.int32(count)), from_vmap):
            assert jnp.asarray(got).shape == ()
            np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=0)


@every_row
def test_the_chain_applies_the_rate_of_the_updates_before_it(row):
    schedule = build(row)
    tx = optax.scale_by_learning_rate(schedule)
    update = jax.jit(tx.update)
    state = tx.init(jnp.ones(()))
    for count in range(4):
        got, state = update(jnp.ones(()), state)
        np.testing.assert_allclose(got, -schedule(count), rtol=2e-6)


@every_row
def test_many_peaks_are_one_compilation(row):
    traces = []

    @jax.jit
    def rate(peak, count):
        traces.append(count)
        return build(row, peak=peak)(count)

    start = row.defaults.get("warmup_steps", 0)
    for peak in (0.1, 0.2, 0.7):
        assert rate(peak, start) == np.float32(peak)
    assert len(traces) == 1
