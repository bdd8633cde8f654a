"""How long a training step takes, and how much of it the optimizer takes."""

import contextlib
import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Pairs of runs that the optimizer's share is the median of.
REPEATS = 7


@dataclasses.dataclass(frozen=True)
class Timings:
    """Times of a run: see the fields of these names in `metrics.Result`."""

    seconds_per_step: float | None = None
    optimizer_share: float | None = None
    compile_seconds: float | None = None


def compare(
    step: Callable[[Any], Any], update: Callable[[Any], Any], state: Any
) -> tuple[float, float]:
    """Times a training step and the optimizer's update alone, by turns.

    By turns, because the speed of a machine drifts; both are compiled by a first call.

    Args:
      step: From a state to the next one; it may donate its argument.
      update: The same, with the update of the optimizer alone.
      state: The state to start from; it is copied.

    Returns:
      Median seconds of a step, and the median ratio of an update's time to a step's.
    """
    times: list[list[float]] = [[], []]
    states = [jax.tree.map(jnp.copy, state) for _ in times]
    for _ in range(1 + REPEATS):
        for index, function in enumerate((step, update)):
            begin = time.perf_counter()
            states[index] = jax.block_until_ready(function(states[index]))
            times[index].append(time.perf_counter() - begin)
    steps, updates = times[0][1:], times[1][1:]
    ratios = [u / s for s, u in zip(steps, updates, strict=True)]
    return statistics.median(steps), statistics.median(ratios)


def read(path: pathlib.Path | None) -> Timings | None:
    """Reads the times of a finished run; None if they are not there or not whole."""
    try:
        return Timings(**json.loads(path.read_text())) if path else None
    except (OSError, ValueError, TypeError):
        return None


def write(path: pathlib.Path, timings: Timings) -> None:
    """Writes the times of a finished run, if there is room; they are no part of it."""
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(dataclasses.asdict(timings)) + "\n")
