"""What the commands do with laws: files, tables, and a run against its forecast."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import optax

from optlab import lab, laws, probes
from optlab.lab import files, terminal

# Losses of single batches scatter; their mean over this part of a run is watched.
WINDOW = 0.05

# Keys of `laws.errors` in the order of tables, and their columns.
ERROR_KEYS = ("r2", "mean_relative_error", "max_relative_error", "final_relative_error")
ERROR_COLUMNS = ("R²", "mean\nerror", "largest\nerror", "final\nerror")

PARAMETER_COLUMNS = ("parameter", "value", "from", "to")
RANKING_COLUMNS = ("schedule", "final loss", "from", "to", "above\nthe best")


def write_law(path: pathlib.Path, fitted: laws.Fitted) -> None:
    """Writes a fitted law to a JSON file.

    Args:
      path: The file.
      fitted: The law.

    Raises:
      LabError: If the file cannot be written.
    """
    files.write(
        path, json.dumps(laws.to_json(fitted), indent=1, allow_nan=False) + "\n"
    )


def read_law(path: pathlib.Path) -> laws.Fitted:
    """Reads a law from a JSON file.

    Args:
      path: The file.

    Returns:
      The fitted law.

    Raises:
      LabError: If there is no law in the file.
    """
    try:
        return laws.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        problem = f"{error.strerror}; `optlab fit` writes a law"
        raise lab.LabError(f"{path}: {problem}") from error
    except (TypeError, ValueError) as error:
        problem = f"no law ({error}); `optlab fit` writes one"
        raise lab.LabError(f"{path}: {problem}") from error


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Prints what laws warn of for the person at the terminal.

    Yields:
      Nothing.

    Raises:
      LabError: In place of a ValueError.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", laws.ExtrapolationWarning)
        try:
            yield
        except ValueError as error:
            raise lab.LabError(str(error)) from error
    warn(str(warning.message) for warning in caught)


def warn(texts: Iterable[str]) -> None:
    """Prints warnings, each once."""
    for text in dict.fromkeys(texts):
        terminal.report(f"warning: {text}")


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A measured curve and what a law says of it.

    Attributes:
      name: Name of the curve.
      actual: Measured losses, shape (n,).
      prediction: The prediction at the same steps.
    """

    name: str
    actual: np.ndarray
    prediction: laws.Prediction

    @property
    def step(self) -> np.ndarray:
        """Updates done, shape (n,)."""
        return self.prediction.step

    @property
    def errors(self) -> dict[str, float]:
        """What `laws.errors` says."""
        return laws.errors(self.prediction.loss, self.actual)


def compare(fitted: laws.Fitted, curve: laws.Curve) -> Comparison:
    """Compares a measured curve with a law.

    Args:
      fitted: The law.
      curve: The curve.

    Returns:
      Both, from the last step of the warm-up on; a fit begins behind it.
    """
    found = laws.compare(fitted, curve)
    started = int(np.argmax(curve.rate > 0)) + 1
    kept = curve.step >= max(curve.warmup_steps, started)
    arrays = (x[kept] for x in (found.step, found.loss, found.low, found.high))
    prediction = laws.Prediction(*arrays)
    return Comparison(curve.name, curve.loss[kept], prediction)


class Watch(NamedTuple):
    """A run that is held against a forecast.

    Attributes:
      step: Updates done, shape (n,).
      mean: Mean of the losses in the window that ends there, shape (n,).
      alarm: Step at which the mean has left the interval, or None.
    """

    step: np.ndarray
    mean: np.ndarray
    alarm: int | None


def watch(run: Comparison) -> Watch:
    """Finds the step at which a run leaves the interval of its forecast.

    Means are taken of the ratio of loss and forecast, so that they do not lag behind a
    falling loss.

    Args:
      run: The run and its forecast.

    Returns:
      The smoothed run, and the alarm.
    """
    found = run.prediction
    ratio = run.actual / found.loss
    window = max(1, round(WINDOW * ratio.size))
    sums = np.cumsum(np.concatenate([[0.0], ratio]))
    step, predicted, low, high = (
        values[window - 1 :]
        for values in (found.step, found.loss, found.low, found.high)
    )
    mean = (sums[window:] - sums[:-window]) / window * predicted
    out = np.flatnonzero((mean < low) | (mean > high))
    return Watch(step, mean, int(step[out[0]]) if out.size else None)


def verdict(watch: Watch) -> str:
    """Says whether a run has left the interval of its forecast."""
    if watch.alarm is None:
        return "The run stays in the interval of the prediction."
    return f"The run leaves the interval of the prediction at step {watch.alarm}."


def tracked(
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    fitted: laws.Fitted,
    steps: int,
) -> optax.GradientTransformationExtraArgs:
    """Adds to an optimizer a state that follows a law.

    Args:
      tx: The optimizer.
      schedule: The schedule of its learning rate.
      fitted: The law.
      steps: Steps of the run.

    Returns:
      The optimizer with `probes.track_law` behind it; its updates are the same.

    Raises:
      LabError: If the law cannot be followed step by step.
    """
    with told():
        link = probes.track_law(schedule, fitted, total_steps=steps)
    return optax.chain(tx, link)


def curve_text(predictions: Mapping[str, laws.Prediction]) -> str:
    """Writes predicted curves as CSV.

    Args:
      predictions: The predictions by the name of their schedule or run.

    Returns:
      Columns for name, step, loss and the two ends of the interval.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("name", "step", "loss", "low", "high"))
    for name, found in predictions.items():
        columns = (found.step, found.loss, found.low, found.high)
        for step, *losses in zip(*map(np.asarray, columns), strict=True):
            rows.writerow((name, int(step), *(f"{loss:.7g}" for loss in losses)))
    return text.getvalue()


def error_row(run: Comparison) -> tuple[str, ...]:
    """Writes the errors of a prediction as a row of a table.

    Args:
      run: The run and its prediction.

    Returns:
      Name, R², and the other errors in percent.
    """
    r2, *others = (run.errors[key] for key in ERROR_KEYS)
    return run.name, f"{r2:.5f}", *(f"{error:.3%}" for error in others)


def parameter_rows(fitted: laws.Fitted) -> list[tuple[str, ...]]:
    """Writes the parameters of a law as rows of a table.

    Args:
      fitted: The law.

    Returns:
      Name, value and the ends of the interval.
    """
    return [
        (name, *(f"{x:.4g}" for x in (value, *fitted.intervals[name])))
        for name, value in fitted.params.items()
    ]


def ranking_rows(
    ranked: Sequence[tuple[str, float, float, float]],
) -> list[tuple[str, ...]]:
    """Writes a ranking as rows of a table.

    >>> ranking_rows([("wsd", 2.0, 1.9, 2.1), ("cosine", 2.02, 1.9, 2.1)])
    [('wsd', '2.0000', '1.9000', '2.1000', '–'),
     ('cosine', '2.0200', '1.9000', '2.1000', '1.00%')]

    Args:
      ranked: Name, final loss and the ends of its interval, the best first.

    Returns:
      A row for each.
    """
    best = ranked[0][1]
    return [
        (
            name,
            *(f"{x:.4f}" for x in (loss, low, high)),
            f"{loss / best - 1:.2%}" if index else "–",
        )
        for index, (name, loss, low, high) in enumerate(ranked)
    ]
