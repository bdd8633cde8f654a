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

from optlab.lab import processes

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
    found = processes.decide(_read, path)
    return None if found is None else Timings(**found)


def _read(path: pathlib.Path | None) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text()) if path else None
        return found and dataclasses.asdict(Timings(**found))
    except (OSError, ValueError, TypeError):
        return None


def keep(path: pathlib.Path | None, timings: Timings) -> Timings:
    """Writes the times of a finished run, if there is room; they are no part of it.

    Args:
      path: The file, or None.
      timings: What this process has measured.

    Returns:
      What the first process has measured.
    """
    return Timings(**processes.decide(_write, path, dataclasses.asdict(timings)))


def _write(path: pathlib.Path | None, found: dict[str, Any]) -> dict[str, Any]:
    if path is not None:
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(found) + "\n")
    return found
