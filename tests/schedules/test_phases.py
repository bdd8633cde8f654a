"""What every schedule of phases keeps: the boundaries, exactly, for any count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, schedules
from tests import same_bits
from tests.schedules import boundary_table

LAST = 2**31 - 1
PEAK, START, END = 1.1e-3, 1.7e-5, 1.3e-4
# Total 997, warm-up 83, decay 914 or 107: counts for which compiled division by a
# constant misses 1.
KINDS = {
    "cosine": schedules.cosine,
    "linear": schedules.linear,
    "polynomial": lambda peak, **rest: schedules.polynomial(peak, power=1.7, **rest),
    "rex": schedules.rex,
    "uba": schedules.uba,
    "cosine_power": schedules.cosine_power,
    "exponential": schedules.exponential,
    "wsd": lambda peak, **rest: schedules.wsd(peak, decay_steps=107, **rest),
}
over_kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind, peak=PEAK, **changes):
    arguments = {
        "total_steps": 997,
        "warmup_steps": 83,
        "init_value": START,
        "end_value": END,
    }
    return KINDS[kind](peak, **{**arguments, **changes})


@pytest.mark.parametrize("name", boundary_table.TABLE)
def test_equals_the_boundary_table_for_every_kind_of_count(name):
    schedule, values = boundary_table.TABLE[name]
    steps = np.array(list(values))
    for count in (int, np.int64, np.int32, np.uint32, jnp.int32, jnp.uint32):
        got = [schedule(count(step)) for step in steps]
        # float32, and seven printed digits
        np.testing.assert_allclose(got, list(values.values()), rtol=2e-6, atol=1e-9)
    np.testing.assert_array_equal(jax.jit(schedule)(steps), got)
    np.testing.assert_array_equal(jax.vmap(schedule)(steps), got)
    traced = jax.jit(schedule)
    np.testing.assert_array_equal([traced(jnp.int32(step)) for step in steps], got)


@over_kinds
def test_first_peak_and_end_are_exact(kind):
    schedule = build(kind)
    for run in (schedule, jax.jit(schedule)):
        assert run(0) == np.float32(START)
        assert run(83) == np.float32(PEAK)
        assert run(82) < run(83)
        assert run(996) > np.float32(END)
        for step in (997, 998, 2**24 + 1, LAST):
            assert run(step) == np.float32(END)
    without = build(kind, warmup_steps=0)
    assert without(0) == np.float32(PEAK)


@over_kinds
def test_an_unsigned_step_beyond_the_total_does_not_wrap_round_to_the_peak(kind):
    schedule = build(kind)
    for step in (998, 5000, LAST):
        assert schedule(np.uint32(step)) == np.float32(END)
        assert schedule(jnp.uint32(step)) == np.float32(END)


def test_the_stable_phase_is_exactly_the_peak_when_compiled():
    # 1 / 41 and 1 / 47 in float32, times 41 and 47, fall short of 1.
    for decay in (41, 47, 55, 110, 388):
        schedule = jax.jit(schedules.wsd(PEAK, total_steps=1000, decay_steps=decay))
        rates = np.asarray(schedule(jnp.arange(1000 - decay + 1)))
        np.testing.assert_array_equal(rates, np.float32(PEAK))


@over_kinds
def test_compiled_equals_eager_bit_for_bit(kind):
    schedule = build(kind)
    steps = jnp.arange(0, 1010)
    eager = np.asarray(schedule(steps))
    same_bits.require(jax.jit(schedule)(steps), eager)
    same_bits.require(jax.vmap(schedule)(steps), eager)
    one_by_one = jax.lax.map(schedule, steps)
    same_bits.require(one_by_one, eager)
    some = [0, 1, 83, 500, 900, 996]
    same_bits.require([schedule(step) for step in some], eager[some])


@over_kinds
def test_rises_to_the_peak_and_falls_after_it(kind):
    rates = np.asarray(build(kind)(jnp.arange(1100)))
    assert (np.diff(rates[:84]) > 0).all()
    assert (np.diff(rates[83:]) <= 0).all()
    assert rates[83:].min() == np.float32(END)


@over_kinds
def test_a_traced_peak_compiles_once(kind):
    traces = []

    @jax.jit
    def rate(peak, end, count):
        traces.append(1)
        return build(kind, peak, end_value=end)(count)

    for peak, end, count in ((PEAK, END, 900), (2e-3, 1e-5, 900), (3e-3, 1e-5, 83)):
        got = rate(peak, end, count)
        assert got == np.float32(3e-3) if count == 83 else 0 < got < peak
    want = build(kind)(900)
    np.testing.assert_allclose(rate(PEAK, END, 900), want, rtol=1e-6)
    assert len(traces) == 1


@over_kinds
def test_a_rate_is_of_the_default_float_width(kind):
    assert build(kind)(5).dtype == jnp.float32
    assert build(kind, jnp.bfloat16(1e-3))(5).dtype == jnp.float32
    with jax.enable_x64(True):
        assert build(kind)(5).dtype == jnp.float64
        assert build(kind)(np.int32(5)).dtype == jnp.float64


@over_kinds
def test_a_run_resumed_in_mid_schedule_goes_on_with_the_same_rates(kind):
    gradient = jnp.ones(3)

    def rates(tx, state, steps):
        update = jax.jit(tx.update)
        seen = []
        for _ in range(steps):
            _, state = update(gradient, state)
            seen.append(float(optax.tree.get(state, "learning_rate")))
        return seen, state

    def chain():
        return optimizers.sgd(build(kind, total_steps=120, warmup_steps=3))

    whole, _ = rates(chain(), chain().init(gradient), 12)
    first, state = rates(chain(), chain().init(gradient), 5)
    saved = jax.tree.map(np.asarray, state)
    rest, _ = rates(chain(), jax.tree.map(jnp.asarray, saved), 7)
    assert first + rest == whole
    assert whole[3] == np.float32(PEAK)


@over_kinds
@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"total_steps": 0}, ValueError, "total_steps must be at least 1"),
        ({"total_steps": True}, ValueError, "got True"),
        ({"total_steps": 2**31}, ValueError, r"below 2\^31"),
        ({"total_steps": 100.0}, TypeError, r"must be an integer, got 100\.0"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0"),
        ({"warmup_steps": 0.1}, TypeError, "warmup_steps counts steps"),
        ({"warmup_steps": 997}, ValueError, "leaves nothing of total_steps=997"),
        ({"end_value": 1.0}, ValueError, "lies above the peak"),
    ],
)
def test_phases_that_do_not_fit_are_refused(kind, changes, error, said):
    with pytest.raises(error, match=rf"schedules\.{kind}: .*{said}"):
        build(kind, **changes)


def test_numpy_integers_count_steps_too():
    schedule = build("wsd", total_steps=np.int64(997), warmup_steps=np.int32(83))
    np.testing.assert_array_equal(schedule(900), build("wsd")(900))
