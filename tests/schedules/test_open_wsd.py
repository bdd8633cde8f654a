"""A stable phase without an end: the decay starts when it is told to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules
from optlab.schedules import shapes

LAST = 2**31 - 1
PEAK = 1.1e-3


def build(decay_start=schedules.NEVER, **changes):
    arguments = {"decay_steps": 107, "warmup_steps": 83, "end_value": 1e-4}
    return schedules.open_wsd(PEAK, decay_start=decay_start, **{**arguments, **changes})


def test_never_is_the_last_count_there_is():
    assert schedules.NEVER == LAST
    rates = np.asarray(build()(jnp.array([83, 84, 10**6, 2**24 + 1, LAST - 1, LAST])))
    np.testing.assert_array_equal(rates, np.float32(PEAK))


@pytest.mark.parametrize("decay", [shapes.linear, shapes.one_minus_sqrt])
@pytest.mark.parametrize("start", [83, 500, 10**9, LAST - 107, LAST - 1])
def test_equals_the_wsd_of_that_total_once_started(decay, start):
    steps = np.array([0, 40, 83, start - 1, start, start + 1, start + 50])
    steps = np.append(steps, [start + 106, start + 107, start + 500])
    steps = steps[steps <= LAST]
    got = build(start, decay=decay)(jnp.asarray(steps, jnp.int32))
    if start + 107 <= LAST:
        want = schedules.wsd(
            PEAK,
            total_steps=start + 107,
            decay_steps=107,
            warmup_steps=83,
            end_value=1e-4,
            decay=decay,
        )
        np.testing.assert_array_equal(got, want(jnp.asarray(steps, jnp.int32)))
    # No count wraps round, however near the last one the decay starts.
    assert (np.asarray(got)[steps > start] < np.float32(PEAK)).all()
    assert (np.asarray(got)[(steps >= 83) & (steps <= start)] == np.float32(PEAK)).all()


def test_a_traced_start_gives_the_same_bits_and_compiles_once():
    traces = []

    @jax.jit
    def rate(start, count):
        traces.append(1)
        return build(start)(count)

    for start in (83, 90, 500, schedules.NEVER):
        for count in (0, 50, 83, 90, 120, 190, 400, 550, 700, LAST):
            assert rate(jnp.int32(start), count) == build(start)(count)
    assert len(traces) == 1


def test_a_traced_start_before_the_end_of_the_warmup_waits_for_it():
    started = jax.jit(lambda start, count: build(start)(count))
    for start in (-5, 0, 40, 82):
        for count in (0, 20, 82, 83, 84, 150):
            assert started(jnp.int32(start), count) == build(83)(count)


def test_starts_of_every_integer_type_agree():
    steps = jnp.arange(480, 620)
    for start in (np.int64(500), np.uint32(500), jnp.int32(500), jnp.uint32(500)):
        np.testing.assert_array_equal(build(start)(steps), build(500)(steps))
        traced = jax.jit(lambda s: build(s)(steps))(start)
        np.testing.assert_array_equal(traced, build(500)(steps))


def test_many_branches_in_one_call():
    starts = jnp.array([100, 200, 300])
    rates = jax.vmap(lambda start: build(start)(jnp.arange(450)))(starts)
    for start, got in zip(starts, rates, strict=True):
        np.testing.assert_array_equal(got, build(int(start))(jnp.arange(450)))


def test_a_decay_of_one_step_falls_at_once():
    rate = build(100, decay_steps=1)
    assert [rate(100), rate(101)] == [np.float32(PEAK), np.float32(1e-4)]


def test_decays_along_a_mean():
    rate = build(100, decay_steps=2, decay=shapes.geometric)
    np.testing.assert_allclose(rate(101), np.sqrt(PEAK * 1e-4), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"decay_start": 82}, ValueError, "decay_start must be at least 83"),
        ({"decay_start": jnp.int32(82)}, ValueError, "decay_start must be at least 83"),
        ({"decay_start": 2**31}, ValueError, r"below 2\^31"),
        ({"decay_start": 500.0}, TypeError, "decay_start counts steps"),
        ({"decay_start": None}, TypeError, "decay_start counts steps"),
        ({"decay_steps": 0}, ValueError, "decay_steps must be at least 1"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0"),
        ({"end_value": 1.0}, ValueError, "end_value=1.0 lies above the peak"),
        (
            {"end_value": 0.0, "decay": shapes.harmonic},
            ValueError,
            "end_value must be positive",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused(changes, error, said):
    with pytest.raises(error, match=rf"schedules\.open_wsd: .*{said}"):
        build(**changes)


def test_a_traced_start_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match=r"decay_start counts steps.*got float32"):
        jax.jit(lambda start: build(start)(5))(100.0)
