"""Drops at given steps, and at 30, 60 and 90 per cent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules


def test_a_boundary_has_the_new_rate_already():
    rate = schedules.step_decay(1.0, boundaries=(10, 25), factor=0.5, warmup_steps=4)
    want = [0, 0.5, 1, 1, 0.5, 0.5, 0.25, 0.25]
    steps = jnp.array([0, 2, 4, 9, 10, 24, 25, 2**31 - 1])
    np.testing.assert_array_equal(rate(steps), want)


def test_equals_optax():
    ours = schedules.step_decay(1e-3, boundaries=(30, 60, 90))
    theirs = optax.piecewise_constant_schedule(1e-3, {30: 0.1, 60: 0.1, 90: 0.1})
    steps = jnp.arange(100)
    np.testing.assert_allclose(ours(steps), theirs(steps), rtol=1e-6)


def test_a_factor_above_one_raises_the_rate():
    rate = schedules.step_decay(1.0, boundaries=[5], factor=4.0)
    assert (rate(4), rate(5)) == (1.0, 4.0)


def test_a_traced_factor_compiles_once_and_has_a_gradient():
    traces = []

    @jax.jit
    def rate(factor, count):
        traces.append(1)
        return schedules.step_decay(1.0, boundaries=(5, 10), factor=factor)(count)

    assert [float(rate(f, 7)) for f in (0.25, 0.5)] == [0.25, 0.5]
    assert len(traces) == 1
    slopes = [jax.grad(rate)(0.5, count) for count in (0, 7, 12)]
    np.testing.assert_allclose(slopes, [0, 1, 2 * 0.5])


def test_numbers_narrower_than_float32_are_not_multiplied_as_such():
    peak = jnp.bfloat16(1e-3)
    rate = schedules.step_decay(peak, boundaries=(1,), factor=0.3)
    np.testing.assert_allclose(rate(1), float(peak) * 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"boundaries": (20, 10)}, ValueError, "boundaries must increase, but 10"),
        ({"boundaries": (10, 10)}, ValueError, "boundaries must increase, but 10"),
        ({"boundaries": ()}, ValueError, "boundaries is empty"),
        ({"boundaries": (4, 9)}, ValueError, "boundaries must be at least 6"),
        ({"boundaries": (0.5,)}, TypeError, r"must be an integer, got 0\.5"),
        ({"boundaries": 10}, TypeError, "boundaries holds several steps, got 10"),
        ({"factor": 0}, ValueError, "factor must be positive, got 0"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, said):
    arguments = {"boundaries": (10, 20), "warmup_steps": 5, **changes}
    with pytest.raises(error, match=rf"schedules\.step_decay: .*{said}"):
        schedules.step_decay(1.0, **arguments)


def test_thirty_sixty_ninety_is_a_profile_sampled_at_three_points():
    steps = jnp.arange(120)
    drops = schedules.thirty_sixty_ninety(1e-3, total_steps=100)(steps)
    exponential = schedules.table([1e-3, 1e-4, 1e-5, 1e-6], steps=[0, 30, 60, 90])
    stairs = schedules.sampled(exponential, (30, 60, 90))
    np.testing.assert_allclose(drops, stairs(steps), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_steps": 3}, "total_steps must be at least 4"),
        (
            {"warmup_steps": 30},
            "warmup_steps=30 reaches the first drop, step 30 of 100",
        ),
        ({"factor": -0.1}, "factor must be positive"),
    ],
)
def test_thirty_sixty_ninety_refuses_a_run_that_is_too_short(changes, said):
    with pytest.raises(ValueError, match=said):
        schedules.thirty_sixty_ninety(1.0, **{"total_steps": 100, **changes})


def test_the_shortest_run_of_three_drops():
    rates = schedules.thirty_sixty_ninety(1.0, total_steps=4, factor=0.5)
    np.testing.assert_array_equal(rates(jnp.arange(5)), [1, 0.5, 0.25, 0.125, 0.125])
