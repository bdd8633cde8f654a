"""A schedule that is looked at only now and then."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.schedules import _checks, _phases


def sampled(profile: optax.Schedule, points: int | Sequence[int]) -> optax.Schedule:
    """Holds a profile's value from each sampling point to the next.

    Splits a schedule in two choices: the profile, a curve, and the sampling rate. Few
    points make a staircase of any curve; every step makes the curve itself.

        rate(t) = profile(s(t)),   s(t) = the last sampling point <= t

    Args:
      profile: Schedule to sample.
      points: Steps at which it is sampled, increasing; step 0 is one of them, named or
        not. A whole number r stands for 0, r, 2 r, ... A warm-up of the profile becomes
        a staircase too, unless its steps are among the points.

    Returns:
      Schedule, step -> rate, shape of the step, dtype of the profile.

    Raises:
      ValueError: If points do not increase, or there is none.
      TypeError: If a point is not an integer, or the profile is not a function.

    Example:
      >>> from optlab import schedules
      >>> profile = schedules.linear(1.0, total_steps=100)
      >>> rate = schedules.sampled(profile, (50, 75))
      >>> print(*(rate(t) for t in (0, 49, 50, 74, 75, 99)))
      1.0 1.0 0.5 0.5 0.25 0.25

    Source:
      Chen et al., 2021, arXiv:2107.04197; its list of sampling rates is UNVERIFIED.
    """
    who = "schedules.sampled"
    if not callable(profile):
        raise TypeError(f"{who}: profile must be a schedule, got {profile!r}")
    every, steps = 0, ()
    if np.ndim(points):
        steps = _checks.increasing(who, "points", points, 0)
    else:
        every = _checks.whole(who, "points", points, 1)

    @jax.jit
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = _phases.signed(count)
        if every:
            return jnp.asarray(profile(count - count % every))
        stairs = jnp.asarray((0, *steps), count.dtype)
        last = stairs[jnp.searchsorted(stairs, count, side="right") - 1]
        return jnp.asarray(profile(last))

    return schedule
