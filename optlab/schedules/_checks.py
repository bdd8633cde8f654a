"""What schedules refuse: numbers out of range, as far as they are known."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


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


def known(value: Any) -> np.ndarray | None:
    """Returns a number in double precision; None while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value, float)


def positive(who: str, name: str, value: Any, why: str = "") -> None:
    """Raises unless a number is positive and finite, or traced; `why` comes last."""
    number = known(value)
    if number is not None and not ((number > 0) & np.isfinite(number)).all():
        raise ValueError(f"{who}: {name} must be positive, got {value}{why}")


def falls(who: str, peak: Any, end_value: Any) -> None:
    """Raises if the end value is known to lie above the peak."""
    top, floor = known(peak), known(end_value)
    if top is not None and floor is not None and (floor > top).any():
        raise ValueError(
            f"{who}: end_value={end_value} lies above the peak {peak}; a decay falls"
        )


def increasing(
    who: str, name: str, values: Sequence[int], least: int
) -> tuple[int, ...]:
    """Returns steps as ints, or raises unless each is larger than the one before."""
    steps = tuple(whole(who, name, value, least) for value in values)
    if not steps:
        raise ValueError(f"{who}: {name} is empty")
    for before, after in itertools.pairwise(steps):
        if after <= before:
            raise ValueError(
                f"{who}: {name} must increase, but {after} follows {before}"
            )
    return steps
