"""A schedule read off a table."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.schedules import _checks, _phases


def table(
    values: Sequence[float] | jax.typing.ArrayLike,
    *,
    steps: Sequence[int] | None = None,
) -> optax.Schedule:
    """Reads the rate off a table, on straight lines between its steps.

    For measured, refined or designed schedules. Exactly the first value up to the first
    step, exactly the last one from the last step on.

    Args:
      values: The rates, shape (n,), n at least 1; they may be traced.
      steps: The steps at which they hold, increasing; None for 0, 1, ..., n - 1.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If there is no value, one is not finite, or steps do not increase or
        are not as many as the values.
      TypeError: If a step is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.table([0.0, 1.0, 0.5], steps=[0, 10, 20])
      >>> print(*(rate(t) for t in (0, 5, 10, 15, 20, 99)))
      0.0 0.5 1.0 0.75 0.5 0.5

    Source:
      Written for this library. Differs from `jnp.interp`: integer differences of steps.
    """
    who = "schedules.table"
    known = _checks.known(values)
    given = jnp.asarray(values) if known is None else known
    if given.ndim != 1 or not given.size:
        raise ValueError(
            f"{who}: values need the shape (n,) with n > 0, got {given.shape}"
        )
    if known is not None and not np.isfinite(known).all():
        at = int(np.argmin(np.isfinite(known)))
        raise ValueError(f"{who}: value {at} is {known[at]}; it must be finite")
    knots = range(given.size)
    if steps is not None:
        knots = _checks.increasing(who, "steps", steps, 0)
    if len(knots) != given.size:
        raise ValueError(f"{who}: {given.size} values for {len(knots)} steps")

    @jax.jit
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        rates = jnp.asarray(given, float)
        count = jnp.clip(_phases.signed(count), knots[0], knots[-1])
        if steps is None:
            return rates[count]
        at = jnp.asarray(knots, count.dtype)
        i = jnp.clip(jnp.searchsorted(at, count, side="right"), 1, len(knots) - 1)
        span = at[i] - at[i - 1]
        left = _phases.fraction(at[i] - count, span)
        # Differences first: between equal rates nothing is rounded.
        inside = rates[i] + (rates[i - 1] - rates[i]) * left
        return jnp.where(left == 1, rates[i - 1], inside)

    return schedule
