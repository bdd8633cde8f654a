"""A schedule from a file of rates, as `optlab refine` and `optlab design` write it."""

import csv
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import catalog, schedules


def file(
    peak: float | jax.Array, *, path: str = "", digest: str = "", total_steps: int
) -> optax.Schedule:
    """Follows the rates of a file, scaled to a peak and stretched to a length.

    Args:
      peak: What the file's largest rate becomes.
      path: The file: JSON with the keys `step` and `rate`, or CSV with these columns.
      digest: What `digest_of` said of the file when the run was planned; a file that
        has changed since is refused. "" takes any.
      total_steps: Steps of the run.

    Returns:
      The schedule.

    Raises:
      ValueError: If there is no such file, it has changed, or it holds no rates.
    """
    if digest not in ("", digest_of(path)):
        raise ValueError(f"{path} is not what it was when the run was planned")
    rates = read(path)
    places = np.linspace(0, len(rates) - 1, total_steps)
    factors = np.interp(places, np.arange(len(rates)), rates / rates.max())
    return schedules.table(peak * jnp.asarray(factors, float))


# What the texts of chains know beside the catalogue's schedules.
ROW = catalog.Row(
    "file",
    file,
    "schedules",
    "given",
    catalog.get("table", "schedules").paper,
    defaults={"peak": 1.0},
)


def digest_of(path: str) -> str:
    """Tells the content of a file from any other content.

    Args:
      path: The file.

    Returns:
      A name for the content, nine letters and digits.

    Raises:
      ValueError: If the file cannot be read.
    """
    # A letter in front, for text reads digits as a number.
    return "d" + hashlib.sha256(_bytes(path)).hexdigest()[:8]


def read(path: str) -> np.ndarray:
    """Reads the rate of each update from a file.

    Args:
      path: The file, as for `file`.

    Returns:
      The rates of updates 0, 1, 2, ..., shape (steps,), float64.

    Raises:
      ValueError: If the file cannot be read or holds something else.
    """
    text = _bytes(path).decode("utf-8", errors="replace")
    try:
        columns = _columns(text, json_like=path.endswith(".json"))
        steps, rates = (np.array(columns[key], float) for key in ("step", "rate"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no rates; wanted 'step' and 'rate', as keys of a .json file"
            " or columns of a .csv, as `optlab refine` and `optlab design` write them"
        ) from error
    if not steps.size or not np.array_equal(steps, np.arange(rates.size)):
        raise ValueError(f"{path}: 'step' must be 0, 1, 2, ..., one for each 'rate'")
    good = np.isfinite(rates) & (rates >= 0)
    if not good.all():
        step = int(np.argmin(good))
        raise ValueError(f"{path}: the rate of step {step} is {rates[step]:g}")
    if not rates.any():
        raise ValueError(f"{path}: every rate is 0")
    return rates


def _columns(text: str, *, json_like: bool) -> dict[str, list]:
    if json_like:
        return json.loads(text)
    names, *rows = csv.reader(text.splitlines())
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _bytes(path: str) -> bytes:
    if not path:
        raise ValueError("which file? Write file:path=refined.json")
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; wanted a file of rates") from error
