"""A better schedule from the gradient norms of a run."""

import math
import os
import pathlib
from typing import NamedTuple

import numpy as np
import optax

from optlab import lab, schedules
from optlab.lab import curves

# What each method weighs steps by, and what the log calls it.
NORMS = {"adam": "gradient_l1_norm", "sgd": "gradient_norm"}

# Fewer norms tell of no run.
LEAST_STEPS = 10


class Refined(NamedTuple):
    """A schedule made of a run.

    Attributes:
      norms: The run's gradient norms, shape (steps of the run,).
      schedule: The schedule of a new run, its peak 1.
      steps: Steps of the new run.
    """

    norms: np.ndarray
    schedule: optax.Schedule
    steps: int


def refine(
    run: str | os.PathLike, *, method: str = "adam", steps: int | None = None
) -> Refined:
    """Refines a schedule from a run's log.

    Args:
      run: Folder of a run, or its `metrics.jsonl`.
      method: "adam" for Adam and its kin, "sgd" for gradient descent.
      steps: Steps of the new run; None for as many as the old one had.

    Returns:
      The norms and the schedule.

    Raises:
      LabError: If there is no such run, or its norms make no schedule.
    """
    found = read_norms(run, NORMS[method])
    steps = len(found) if steps is None else steps
    try:
        schedule = schedules.refined(found, peak=1.0, total_steps=steps, method=method)
    except ValueError as error:
        raise lab.LabError(f"{run}: {error}") from error
    return Refined(found, schedule, steps)


def read_norms(run: str | os.PathLike, name: str) -> np.ndarray:
    """Reads the gradient norms of a run.

    Args:
      run: Folder of a run, or its `metrics.jsonl`.
      name: What the log calls them.

    Returns:
      The norm of each step, shape (steps,), float64.

    Raises:
      LabError: If there is no such run, or a norm is missing or is none.
    """
    file = pathlib.Path(run)
    if file.is_dir():
        file /= "metrics.jsonl"
    if not file.is_file():
        raise lab.LabError(f"{run}: no run, for there is no file {file}")
    norms = []
    for line, row in curves.log_rows(file):
        if row["kind"] != "train":
            continue
        if name not in row:
            raise lab.LabError(
                f"{file}, line {line}: no '{name}'; this log is older than the norm,"
                " train the run once more"
            )
        if row["step"] != len(norms):
            raise lab.LabError(
                f"{file}, line {line}: step {row['step']} where {len(norms)} should"
                " be; a part of the log is lost, train the run once more"
            )
        norms.append(_checked(row[name], f"{file}, line {line}: '{name}'"))
    if len(norms) < LEAST_STEPS:
        raise lab.LabError(
            f"{file}: {len(norms)} steps; a schedule needs the norms of at least"
            f" {LEAST_STEPS}"
        )
    return np.array(norms)


def _checked(norm: object, what: str) -> float:
    # Null stands for what was not finite.
    if norm is None:
        raise lab.LabError(f"{what} was not finite; refine a run that did not diverge")
    if not isinstance(norm, int | float) or not 0 <= norm < math.inf:
        raise lab.LabError(f"{what} is {norm!r}; a norm is 0 or more")
    return float(norm)
