"""Schedules read off a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules

STEPS, VALUES = (10, 17, 58, 99), (0.1, 1.3, 0.7, 0.2)


def test_interpolates_as_numpy_does():
    rate = schedules.table(VALUES, steps=STEPS)
    steps = np.arange(130)
    np.testing.assert_allclose(rate(steps), np.interp(steps, STEPS, VALUES), rtol=1e-6)


def test_the_values_are_exact_at_their_steps_and_beyond():
    rate = schedules.table(VALUES, steps=STEPS)
    for run in (rate, jax.jit(rate)):
        got = [run(step) for step in (0, *STEPS, 100, 2**31 - 1)]
        want = (VALUES[0], *VALUES, VALUES[-1], VALUES[-1])
        np.testing.assert_array_equal(got, np.float32(want))


def test_without_steps_there_is_one_value_for_each_update():
    rate = schedules.table([0.5, 0.25, 1.0])
    np.testing.assert_array_equal(
        rate(np.array([0, 1, 2, 3, 99])), [0.5, 0.25, 1, 1, 1]
    )
    dense = schedules.table([0.5, 0.25, 1.0], steps=range(3))
    np.testing.assert_array_equal(dense(jnp.arange(5)), rate(jnp.arange(5)))


def test_tells_neighbouring_steps_apart_beyond_two_to_the_twenty_four():
    total = 40_000_000
    rate = schedules.table([1.0, 0.0], steps=[0, total])
    left = np.array([3, 2, 1])
    got = rate(jnp.asarray(total - left))
    np.testing.assert_allclose(got, left / total, rtol=2e-7)


@pytest.mark.parametrize("steps", [None, [7]])
def test_one_value_is_constant(steps):
    rates = schedules.table([0.5], steps=steps)(jnp.arange(20))
    np.testing.assert_array_equal(rates, 0.5)


def test_compiled_equals_eager_bit_for_bit():
    rate = schedules.table(VALUES, steps=STEPS)
    steps = jnp.arange(130)
    eager = np.asarray(rate(steps))
    np.testing.assert_array_equal(jax.jit(rate)(steps), eager)
    np.testing.assert_array_equal(jax.lax.map(rate, steps), eager)


def test_traced_values_compile_once_and_have_gradients():
    traces = []

    @jax.jit
    def rate(values, count):
        traces.append(1)
        return schedules.table(values, steps=STEPS)(count)

    for values in (np.ones(4), np.full(4, 2.0)):
        np.testing.assert_allclose(rate(values, 40), values[0])
    assert len(traces) == 1
    slope = jax.grad(rate)(jnp.asarray(VALUES), 40)
    np.testing.assert_allclose(slope, [0, 18 / 41, 23 / 41, 0], rtol=1e-6)
    pair = jax.grad(lambda x: schedules.table([x, 2 * x], steps=[0, 2])(1))(1.0)
    assert pair == 1.5


def test_is_of_the_default_float_width():
    assert schedules.table(np.ones(3, np.float16))(0).dtype == jnp.float32
    rate = schedules.table([0.1, 0.2])
    with jax.enable_x64(True):
        assert rate(0) == 0.1


@pytest.mark.parametrize(
    ("values", "steps", "error", "said"),
    [
        ([], None, ValueError, r"values need the shape \(n,\)"),
        (1.0, None, ValueError, r"values need the shape \(n,\) with n > 0, got \(\)"),
        ([[1.0]], None, ValueError, r"got \(1, 1\)"),
        ([1.0, float("nan")], None, ValueError, "value 1 is nan; it must be finite"),
        ([1.0, float("inf"), 2.0], None, ValueError, "value 1 is inf"),
        (["a"], None, TypeError, r"numbers are wanted, got \['a'\]"),
        ([[1.0, 2.0], [3.0]], None, TypeError, "numbers are wanted"),
        ([1.0, 2.0], [0], ValueError, "2 values for 1 steps"),
        ([1.0, 2.0], [5, 5], ValueError, "steps must increase, but 5 follows 5"),
        ([1.0, 2.0], [-1, 5], ValueError, "steps must be at least 0"),
        ([1.0, 2.0], [0, 0.5], TypeError, r"must be an integer, got 0\.5"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(values, steps, error, said):
    with pytest.raises(error, match=said):
        schedules.table(values, steps=steps)


def test_between_equal_rates_nothing_is_rounded():
    rate = schedules.table([0.3, 0.3, 0.1], steps=[0, 37, 90])
    rates = np.asarray(rate(np.arange(100)))
    assert (rates[:38] == np.float32(0.3)).all()
    assert (np.diff(rates) <= 0).all()
