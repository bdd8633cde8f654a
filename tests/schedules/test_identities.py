"""Schedules that are one under two names, and schedules without a jump."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules
from optlab.schedules import shapes
from tests.schedules import boundary_table

LAST = 2**31 - 1
STEPS = jnp.arange(1100)
RUN = boundary_table.RUN
FLOORED = {**RUN, "end_value": 1e-4}
ANNEALED = {"warmup_steps": 100, "end_value": 1e-5}

IDENTITIES = {
    "uba of 2 is cosine": (
        schedules.uba(1e-3, phi=2.0, **FLOORED),
        schedules.cosine(1e-3, **FLOORED),
    ),
    "cosine power of order 1 is cosine": (
        schedules.cosine_power(1e-3, b=1.0, **FLOORED),
        schedules.cosine(1e-3, **FLOORED),
    ),
    "rex of 1 is linear": (
        schedules.rex(1e-3, k=1.0, **FLOORED),
        schedules.linear(1e-3, **FLOORED),
    ),
    "polynomial of power 1 is linear": (
        schedules.polynomial(1e-3, **FLOORED),
        schedules.linear(1e-3, **FLOORED),
    ),
    "a linear decay of the whole run is linear": (
        schedules.wsd(1e-3, decay_steps=900, decay=shapes.linear, **FLOORED),
        schedules.linear(1e-3, **FLOORED),
    ),
    "exponential is a geometric decay of the whole run": (
        schedules.exponential(1e-3, **FLOORED),
        schedules.wsd(1e-3, decay_steps=900, decay=shapes.geometric, **FLOORED),
    ),
    "infinite without a cool-down is wsd with a geometric decay": (
        schedules.infinite(
            1e-3,
            stable_value=1e-3,
            cooldown_steps=0,
            annealing_steps=200,
            annealing_start=800,
            **ANNEALED,
        ),
        schedules.wsd(
            1e-3,
            total_steps=1000,
            decay_steps=200,
            decay=shapes.geometric,
            **ANNEALED,
        ),
    ),
    "one cycle that begins at nothing is cosine with a curved warm-up": (
        lambda t: schedules.one_cycle(
            1e-3, total_steps=1000, warmup_steps=100, div_factor=1e30
        )(jnp.maximum(t, 100)),
        lambda t: schedules.cosine(1e-3, **RUN)(jnp.maximum(t, 100)),
    ),
    "a table of two values is linear": (
        schedules.table([0.0, 1e-3, 1e-4], steps=[0, 100, 1000]),
        schedules.linear(1e-3, **FLOORED),
    ),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_two_names_are_one_schedule(name):
    one, other = IDENTITIES[name]
    # Near zero a rate may be the difference of two values of a table.
    np.testing.assert_allclose(one(STEPS), other(STEPS), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    "name", [*boundary_table.WHOLE_RUN, *boundary_table.LAST_STEPS]
)
def test_there_is_no_jump_at_any_boundary_and_no_rate_below_the_floor(name):
    schedule, values = boundary_table.TABLE[name]
    rates = np.asarray(schedule(STEPS), np.float64)
    end = np.float32(values[1000])
    assert (np.diff(rates[100:]) <= 0).all()
    assert rates[100:].min() == end
    for step in (1000, 1001, LAST):
        assert schedule(step) == end
    # Across a boundary a rate moves about as far as in the step before or after it.
    moves = np.abs(np.diff(rates))
    for boundary in (100, 800, 1000):
        beside = max(moves[boundary - 2], moves[boundary + 1])
        if "1-sqrt" in name and boundary == 800:
            beside = 1e-3 * np.sqrt(1 / 200)  # its own first step
        assert moves[boundary - 1 : boundary + 1].max() <= 1.15 * beside + 1e-12
