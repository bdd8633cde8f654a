"""Schedules sampled at some steps: profile times sampling rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules

PROFILE = schedules.rex(1.0, total_steps=100)


def test_holds_the_value_of_the_last_point():
    points = (0, 33, 66)
    rate = schedules.sampled(PROFILE, points)
    for step in (0, 1, 32, 33, 65, 66, 99, 2**31 - 1):
        last = max(point for point in points if point <= step)
        assert rate(step) == PROFILE(last)


@pytest.mark.parametrize("every", [1, 7, 10, 100, 2**31 - 1])
def test_a_whole_number_samples_every_so_many_steps(every):
    steps = np.arange(130)
    got = schedules.sampled(PROFILE, every)(steps)
    np.testing.assert_array_equal(got, PROFILE(steps // every * every))


def test_every_step_as_a_point_is_the_profile_itself():
    steps = jnp.arange(130)
    for points in (1, range(130), np.arange(130)):
        rates = schedules.sampled(PROFILE, points)(steps)
        np.testing.assert_array_equal(rates, PROFILE(steps))


def test_step_zero_is_a_point_named_or_not():
    steps = jnp.arange(100)
    named = schedules.sampled(PROFILE, [0, 50])(steps)
    np.testing.assert_array_equal(schedules.sampled(PROFILE, [50])(steps), named)
    assert named[0] == PROFILE(0)


def test_compiled_equals_eager_bit_for_bit():
    steps = jnp.arange(130)
    rate = schedules.sampled(PROFILE, (3, 50, 75))
    eager = np.asarray(rate(steps))
    np.testing.assert_array_equal(jax.jit(rate)(steps), eager)
    np.testing.assert_array_equal(jax.vmap(rate)(steps), eager)
    np.testing.assert_array_equal([rate(t) for t in (0, 3, 74)], eager[[0, 3, 74]])


@pytest.mark.parametrize(
    ("points", "error", "said"),
    [
        ((50, 20), ValueError, "points must increase, but 20 follows 50"),
        ((), ValueError, "points is empty"),
        ((-1, 5), ValueError, "points must be at least 0"),
        (0, ValueError, "points must be at least 1"),
        (0.1, TypeError, r"must be an integer, got 0\.1"),
        ((0.5,), TypeError, "must be an integer"),
    ],
)
def test_points_that_cannot_be_are_refused(points, error, said):
    with pytest.raises(error, match=rf"schedules\.sampled: .*{said}"):
        schedules.sampled(PROFILE, points)


def test_a_profile_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"profile must be a schedule, got 0\.1"):
        schedules.sampled(0.1, 10)
