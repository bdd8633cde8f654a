"""The phases of a run: a linear warm-up, a stable stretch, one decay."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import shapes


def whole(who: str, name: str, value: Any, least: int) -> int:
    """Returns a number of steps as an int, or raises and says who wanted it."""
    try:
        steps = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{who}: {name} counts steps and must be an integer, got {value!r}"
        ) from None
    if isinstance(value, bool) or not least <= steps < 2**31:
        raise ValueError(
            f"{who}: {name} must be at least {least} and below 2^31, got {value!r}"
        )
    return steps


def fraction(part: jax.Array, full: int) -> jax.Array:
    """Divides; exactly 1 where the part is the full number.

    Compiled code multiplies by 1 / full instead, which falls short of 1 for one number
    in eight, and 1 - sqrt(1 - u) turns that last bit of u into 2e-4 of the rate.
    """
    return jnp.where(part == full, 1.0, part.astype(float) / full)


def between(start: Any, end: Any, weight: jax.Array) -> jax.Array:
    """Interpolates; exactly `start` at weight 1 and exactly `end` at weight 0."""
    return start * weight + end * (1 - weight)


def warmup_hold_decay(
    who: str,
    peak: Any,
    *,
    total_steps: int,
    decay_steps: int | None,
    warmup_steps: int,
    init_value: Any,
    end_value: Any,
    shape: shapes.Shape,
) -> optax.Schedule:
    """Builds the schedule; `decay_steps=None` decays from the end of the warm-up."""
    total = whole(who, "total_steps", total_steps, 1)
    warmup = whole(who, "warmup_steps", warmup_steps, 0)
    if warmup >= total:
        raise ValueError(
            f"{who}: warmup_steps={warmup} leaves nothing of total_steps={total};"
            " total_steps includes the warm-up"
        )
    if decay_steps is None:
        decay_steps = total - warmup
    decay = whole(who, "decay_steps", decay_steps, 1)
    if decay > total - warmup:
        raise ValueError(
            f"{who}: decay_steps={decay} and warmup_steps={warmup} do not fit into"
            f" total_steps={total}"
        )
    numbers = isinstance(peak, (int, float)) and isinstance(end_value, (int, float))
    if numbers and end_value > peak:
        raise ValueError(
            f"{who}: end_value={end_value} lies above the peak {peak}; a decay falls"
        )

    # Compiled even when called eagerly: the compiler fuses and reorders, and a rate in
    # a plot or a log should be the rate of the run to the last bit.
    @jax.jit
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        # Integers are subtracted before anything is divided: float32 cannot tell
        # steps apart beyond 2^24. The minimum comes first, or an unsigned step beyond
        # the total would wrap around to the peak.
        count = jnp.minimum(count, jnp.int32(total))
        left = fraction(jnp.minimum(total - count, decay), decay)
        rate = between(peak, end_value, shape(left))
        if warmup == 0:
            return rate
        done = fraction(jnp.clip(count, 0, warmup), warmup)
        return jnp.where(count < warmup, between(peak, init_value, done), rate)

    return schedule
