"""The phases of a run: a linear warm-up, a stable stretch, one decay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import shapes
from optlab.schedules._checks import falls, positive, whole

# A start that does not come: the last count there is.
NEVER = 2**31 - 1


def fraction(part: jax.Array, full: Any) -> jax.Array:
    """Divides; exactly 1 where the part is the full number.

    Compiled code multiplies by 1 / full instead, which falls short of 1 for one number
    in eight, and 1 - sqrt(1 - u) turns that last bit of u into 2e-4 of the rate.
    """
    return jnp.where(part == full, 1.0, part.astype(float) / full)


def between(start: Any, end: Any, weight: jax.Array) -> jax.Array:
    """Interpolates; exactly `start` at weight 1 and exactly `end` at weight 0."""
    return start * weight + end * (1 - weight)


def signed(count: jax.typing.ArrayLike) -> jax.Array:
    """Returns a count from which a later step can be subtracted."""
    count = jnp.asarray(count)
    return count.astype(int) if jnp.issubdtype(count.dtype, jnp.integer) else count


def left(count: jax.Array, start: Any, length: Any) -> jax.Array:
    """Returns the fraction of a phase still to come: 1 up to its start, then falling.

    Args:
      count: Signed count, any shape.
      start: First step of the phase, an integer below 2^31 that may be traced.
      length: Steps of the phase, a positive integer.

    Returns:
      Fraction, shape of the count, floating; exactly 0 from `start + length` on.
    """
    # Integers are subtracted before anything is divided: float32 cannot tell steps
    # apart beyond 2^24. Nothing is added, or a start near 2^31 would wrap round.
    done = jnp.clip(count - start, 0, length)
    return fraction(length - done, length)


def shape_between(
    who: str, decay: shapes.Decay, start: Any, end: Any, name: str = "end_value"
) -> shapes.Shape:
    """Returns the shape of a decay from `start` to `end`, which errors call `name`."""
    if not isinstance(decay, shapes.Mean):
        return decay
    positive(who, name, end, f"; a decay along {decay.name} never reaches 0")
    numbers = isinstance(start, (int, float)) and isinstance(end, (int, float))
    return decay.shape(start / end if numbers else jnp.asarray(start, float) / end)


def warmed(
    who: str,
    peak: Any,
    rest: Callable[[jax.Array], Any],
    *,
    warmup_steps: int,
    init_value: Any,
) -> optax.Schedule:
    """Puts a linear warm-up before `rest`, a function of the signed count."""
    warmup = whole(who, "warmup_steps", warmup_steps, 0)

    # Compiled even when called eagerly: the compiler fuses and reorders, and a rate in
    # a plot or a log should be the rate of the run to the last bit.
    @jax.jit
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = signed(count)
        rate = jnp.broadcast_to(jnp.asarray(rest(count), float), count.shape)
        if warmup == 0:
            return rate
        done = fraction(jnp.clip(count, 0, warmup), warmup)
        return jnp.where(count < warmup, between(peak, init_value, done), rate)

    return schedule


def warmup_hold_decay(
    who: str,
    peak: Any,
    *,
    total_steps: int,
    decay_steps: int | None,
    warmup_steps: int,
    init_value: Any,
    end_value: Any,
    shape: shapes.Decay,
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
    falls(who, peak, end_value)
    fall = shape_between(who, shape, peak, end_value)

    def rate(count: jax.Array) -> jax.Array:
        return between(peak, end_value, fall(left(count, total - decay, decay)))

    return warmed(who, peak, rate, warmup_steps=warmup, init_value=init_value)
