"""What schedules refuse: numbers out of range, as far as they are known."""

import itertools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core


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


def start(who: str, name: str, value: Any, least: int) -> Any:
    """Returns the start of a phase that cannot begin before step `least`.

    Raises where it is known to; a traced start is raised to `least`.
    """
    if not isinstance(value, core.Tracer):
        return whole(who, name, value, least)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"{who}: {name} counts steps and must be an integer, got {value.dtype}"
        )
    return jnp.maximum(value.astype(jnp.int32), least)


def known(value: Any) -> np.ndarray | None:
    """Returns numbers in double precision; None while one of them is traced."""
    leaves = jax.tree.leaves(value)
    traced = any(isinstance(leaf, core.Tracer) for leaf in leaves)
    if traced:
        return None
    try:
        return np.asarray(value, float)
    except (TypeError, ValueError):
        raise TypeError(f"schedules: numbers are wanted, got {value!r}") from None


def positive(who: str, name: str, value: Any, why: str = "") -> None:
    """Raises unless a number is positive and finite, or traced; `why` comes last."""
    number = known(value)
    if number is not None and not ((number > 0) & np.isfinite(number)).all():
        raise ValueError(f"{who}: {name} must be positive, got {value}{why}")


def falls(
    who: str, peak: Any, end_value: Any, name: str = "end_value", above: str = "peak"
) -> None:
    """Raises if the value called `name` is known to lie above the one it follows."""
    top, floor = known(peak), known(end_value)
    if top is not None and floor is not None and (floor > top).any():
        raise ValueError(
            f"{who}: {name}={end_value} lies above the {above} {peak}; a decay falls"
        )


def increasing(who: str, name: str, values: Any, least: int) -> tuple[int, ...]:
    """Returns steps as ints, or raises unless each is larger than the one before."""
    if not np.ndim(values):
        raise TypeError(f"{who}: {name} holds several steps, got {values!r}")
    steps = tuple(whole(who, name, value, least) for value in values)
    if not steps:
        raise ValueError(f"{who}: {name} is empty")
    for before, after in itertools.pairwise(steps):
        if after <= before:
            raise ValueError(
                f"{who}: {name} must increase, but {after} follows {before}"
            )
    return steps
