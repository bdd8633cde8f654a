"""The linear schedule against exact fractions, and where Optax's stands still."""

import fractions

import jax.numpy as jnp
import numpy as np
import optax

from optlab import schedules


def test_equals_the_formula_at_every_step():
    rate = schedules.linear(1e-3, total_steps=50, warmup_steps=7, end_value=1e-4)
    for step in range(55):
        up = fractions.Fraction(step, 7)
        down = fractions.Fraction(max(50 - step, 0), 43)
        want = 1e-3 * up if step < 7 else 1e-4 + (1e-3 - 1e-4) * down
        np.testing.assert_allclose(rate(step), float(want), rtol=1e-6)


def test_tells_neighbouring_steps_apart_beyond_two_to_the_twenty_four():
    total = 40_000_000
    rate = schedules.linear(1.0, total_steps=total)
    steps = jnp.array([total - 3, total - 2, total - 1])
    np.testing.assert_allclose(rate(steps), np.array([3, 2, 1]) / total, rtol=2e-7)
    theirs = optax.linear_schedule(1.0, 0.0, total)
    assert theirs(jnp.int32(20_000_001)) == theirs(jnp.int32(20_000_000))


def test_equals_a_decay_that_takes_the_whole_run():
    steps = jnp.arange(40)
    arguments = {"total_steps": 30, "warmup_steps": 5, "end_value": 0.125}
    whole = schedules.wsd(
        1.0, decay_steps=25, decay=schedules.shapes.linear, **arguments
    )
    np.testing.assert_array_equal(
        schedules.linear(1.0, **arguments)(steps), whole(steps)
    )
