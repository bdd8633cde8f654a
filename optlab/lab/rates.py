"""Schedules as numbers: sampled for a picture, written to a file."""

import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import lab
from optlab.lab import files, parts

# Points of a line; more than a picture has columns, so that a jump stays upright.
POINTS = 20_000


def named(
    texts: Sequence[str], peak: float, steps: int, warmup_steps: int | None = None
) -> dict[str, optax.Schedule]:
    """Builds schedules from their texts.

    >>> list(named(["cosine", "wsd:decay_steps=3"], 0.1, 10))
    ['cosine', 'wsd:decay_steps=3']

    Args:
      texts: The texts, as for `parts.schedule`, each once.
      peak: Their peak.
      steps: Steps of the run.
      warmup_steps: Length of the warm-up of those whose text does not say it; None is
        5 % of the steps.

    Returns:
      The schedules by their texts.

    Raises:
      ValueError: If a text cannot be read or is there twice.
    """
    found: dict[str, optax.Schedule] = {}
    for text in texts:
        if text in found:
            raise ValueError(f"the schedule '{text}' is given twice")
        found[text] = parts.schedule(text, peak, steps, warmup_steps=warmup_steps)
    return found


def line(schedule: optax.Schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples a schedule for a picture.

    Args:
      schedule: The schedule.
      steps: Steps of the run.

    Returns:
      Counts from 0 to `steps`, and the rate of each.
    """
    counts = np.unique(np.linspace(0, steps, min(steps + 1, POINTS)).astype(int))
    return counts, _at(schedule, counts)


def every(schedule: optax.Schedule, steps: int) -> np.ndarray:
    """Returns the rate of each update of a run.

    >>> every(lambda count: 1.0 / (1 + count), 3).round(3).tolist()
    [1.0, 0.5, 0.333]

    Args:
      schedule: The schedule.
      steps: Steps of the run.

    Returns:
      The rates of updates 0 to `steps` - 1, shape (steps,), float64.
    """
    return _at(schedule, np.arange(steps))


def check_path(path: pathlib.Path) -> None:
    """Checks the ending of a file for rates.

    Args:
      path: The file.

    Raises:
      LabError: If it is neither .csv nor .json.
    """
    if path.suffix not in (".csv", ".json"):
        raise lab.LabError(f"{path}: rates are written to a .csv or a .json file")


def write(path: pathlib.Path, rates: np.ndarray) -> None:
    """Writes the rate of each update to a file.

    Args:
      path: The file: CSV with columns `step` and `rate`, or JSON with these keys.
      rates: The rates.

    Raises:
      LabError: If the file's ending is another one, or it cannot be written.
    """
    check_path(path)
    numbers = [float(f"{rate:.9g}") for rate in rates]  # float32 has no more digits
    if path.suffix == ".csv":
        rows = [f"{step},{rate!r}\n" for step, rate in enumerate(numbers)]
        content = "".join(["step,rate\n", *rows])
    else:
        content = json.dumps({"step": list(range(len(numbers))), "rate": numbers})
    files.write(path, content)


def _at(schedule: optax.Schedule, counts: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(schedule)(jnp.asarray(counts)), np.float64)
