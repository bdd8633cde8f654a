"""Warm restarts and re-warming: every cycle exact at both of its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules
from optlab.schedules import shapes

LAST = 2**31 - 1
LENGTHS, WARMUPS, PEAKS = (50, 41, 109), (10, 0, 47), (1e-3, 5e-4, 7e-4)
FLOOR, START = 1e-4, 1e-5


def build(peak=PEAKS, **changes):
    arguments = {
        "cycle_steps": LENGTHS,
        "warmup_steps": WARMUPS,
        "end_value": FLOOR,
        "init_value": START,
    }
    return schedules.cycles(peak, **{**arguments, **changes})


def exact(step):
    """Float64, cycle by cycle."""
    begin, low = 0, START
    for length, warmup, peak in zip(LENGTHS, WARMUPS, PEAKS, strict=True):
        since = step - begin
        if since < warmup:
            return low + (peak - low) * since / warmup
        if since < length:
            p = (since - warmup) / (length - warmup)
            return FLOOR + (peak - FLOOR) * (1 + np.cos(np.pi * p)) / 2
        begin, low = begin + length, FLOOR
    return FLOOR


def test_equals_the_formula_at_every_step():
    got = build()(jnp.arange(220))
    np.testing.assert_allclose(got, [exact(t) for t in range(220)], rtol=3e-6)


def test_each_boundary_is_exact():
    schedule = build()
    for run in (schedule, jax.jit(schedule)):
        assert run(0) == np.float32(START)
        assert run(10) == np.float32(PEAKS[0])
        assert run(50) == np.float32(PEAKS[1])  # no warm-up: it jumps
        assert run(91) == np.float32(FLOOR)  # the warm-up begins
        assert run(91 + 47) == np.float32(PEAKS[2])
        for step in (200, 201, 2**24 + 1, LAST):
            assert run(step) == np.float32(FLOOR)


def test_equals_optax_where_optax_is_accurate():
    theirs = optax.sgdr_schedule(
        [
            {
                "init_value": FLOOR if i else START,
                "peak_value": peak,
                "warmup_steps": warmup,
                "decay_steps": length,
                "end_value": FLOOR,
            }
            for i, (length, warmup, peak) in enumerate(
                zip(LENGTHS, WARMUPS, PEAKS, strict=True)
            )
        ]
    )
    steps = jnp.arange(220)
    np.testing.assert_allclose(build()(steps), jax.vmap(theirs)(steps), rtol=2e-5)


def test_one_cycle_is_the_cosine_schedule():
    steps = jnp.arange(130)
    one = build(1e-3, cycle_steps=[120], warmup_steps=10)(steps)
    cosine = schedules.cosine(
        1e-3, total_steps=120, warmup_steps=10, init_value=START, end_value=FLOOR
    )
    np.testing.assert_array_equal(one, cosine(steps))


def test_one_peak_and_one_warmup_serve_every_cycle():
    steps = jnp.arange(220)
    once = build(1e-3, warmup_steps=7)(steps)
    each = build([1e-3] * 3, warmup_steps=[7, 7, 7])(steps)
    np.testing.assert_array_equal(once, each)


@pytest.mark.parametrize("decay", [shapes.geometric, shapes.one_minus_sqrt])
def test_each_cycle_decays_along_the_given_shape(decay):
    rates = np.asarray(build(decay=decay)(jnp.arange(220)))
    want = schedules.wsd(
        7e-4, total_steps=109, decay_steps=62, end_value=FLOOR, decay=decay
    )(jnp.arange(47, 130))
    np.testing.assert_allclose(rates[138:], want[: 220 - 138], rtol=2e-6)


def test_keeps_its_accuracy_in_a_late_long_cycle():
    # A float32 step count beyond 2^24 could not tell these apart.
    rate = schedules.cycles(1.0, cycle_steps=[2**30, 10**9], decay=shapes.linear)
    last = 2**30 + 10**9
    left = np.array([1, 2, 3, 1000])
    got = rate(jnp.asarray(last - left, jnp.int32))
    np.testing.assert_allclose(got, left / 1e9, rtol=2e-6)


def test_compiled_and_vmapped_equal_eager_bit_for_bit():
    schedule, steps = build(), jnp.arange(220)
    eager = np.asarray(schedule(steps))
    np.testing.assert_array_equal(jax.jit(schedule)(steps), eager)
    np.testing.assert_array_equal(jax.vmap(schedule)(steps), eager)
    for kind in (int, np.int64, np.uint32, jnp.int32):
        some = [schedule(kind(t)) for t in (0, 9, 50, 95, 199, 219)]
        np.testing.assert_array_equal(some, eager[[0, 9, 50, 95, 199, 219]])


def test_traced_peaks_compile_once():
    traces = []

    @jax.jit
    def rates(peaks, floor):
        traces.append(1)
        return build(peaks, end_value=floor)(jnp.array([10, 50, 138, 200]))

    for peaks, floor in ((PEAKS, FLOOR), ((1.0, 2.0, 3.0), 0.5)):
        got = rates(jnp.array(peaks), floor)
        np.testing.assert_array_equal(got, np.float32([*peaks, floor]))
    assert len(traces) == 1
    inside = jax.jit(lambda peak: build([peak, 2 * peak, peak])(50))
    assert inside(0.25) == 0.5


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"cycle_steps": 50}, TypeError, r"length of every cycle, got 50"),
        ({"cycle_steps": []}, ValueError, "cycle_steps is empty"),
        ({"cycle_steps": [50, 0, 9]}, ValueError, "cycle_steps must be at least 1"),
        ({"cycle_steps": [50, 9.0, 9]}, TypeError, "cycle_steps counts steps"),
        ({"cycle_steps": [2**30] * 3}, ValueError, "sum of cycle_steps must be"),
        ({"cycle_steps": [50, 41]}, ValueError, "warmup_steps has 3 entries for 2"),
        ({"warmup_steps": [10, 41, 0]}, ValueError, "cycle 1 has warmup_steps=41"),
        ({"warmup_steps": 41}, ValueError, "cycle 1 .* leaves nothing of its 41"),
        ({"peak": [1.0, 2.0]}, ValueError, "peak has 2 entries for 3 cycles"),
        ({"peak": [1.0, 1e-5, 1.0]}, ValueError, "lies above the peak 1e-05"),
        ({"end_value": 0.0, "decay": shapes.geometric}, ValueError, "must be positive"),
    ],
)
def test_cycles_that_do_not_fit_are_refused(changes, error, said):
    with pytest.raises(error, match=rf"schedules\.cycles: .*{said}"):
        build(**changes)
