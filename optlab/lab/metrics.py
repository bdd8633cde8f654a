"""What a run measures: its log, one JSON object a line, and its result."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from optlab import lab
from optlab.lab import files, flax_step, processes

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of a finished run.

    Attributes:
      workload: Name of the workload.
      label: Label of the chain.
      seed: Seed of the model and of the data.
      steps: Length of the run.
      resumed_from: Step of the checkpoint from which this call went on, or None.
      final_loss: Validation loss after the last step, in nats.
      evaluations: Pairs of step and validation loss; step counts updates done.
      train_losses: Training loss of each step, before its update; NaN where an older
        part of the log is lost.
      seconds_per_step: Median time of a training step, compilation excluded; None, as
        in the next two, if it was not measured.
      optimizer_share: The fraction of that time that the optimizer takes alone.
      compile_seconds: Time to trace and compile the training step; near 0 if an earlier
        run of this process compiled it.
      parameters: Number of trained parameters.
      state_bytes_per_parameter: Bytes of optimizer state for each of them.
    """

    workload: str
    label: str
    seed: int
    steps: int
    resumed_from: int | None
    final_loss: float
    evaluations: list[tuple[int, float]]
    train_losses: list[float]
    seconds_per_step: float | None
    optimizer_share: float | None
    compile_seconds: float | None
    parameters: int
    state_bytes_per_parameter: float


class Log:
    """The log of a run: kept in memory and, if there is a path, in a JSONL file.

    Only the first of several processes writes it; it also tells the others what an
    older part of it says.

    Args:
      path: The file, or None.
    """

    def __init__(self, path: pathlib.Path | None):
        self._path = path
        self.rows: list[Row] = []

    def cut_back(self, step: int) -> None:
        """Keeps what a run had logged when it had done `step` steps.

        A kill can leave rows behind the checkpoint, and half a line at the end.
        """
        self.rows = processes.decide(self._cut_back, step)

    def _cut_back(self, step: int) -> list[Row]:
        path = self._path if self._path and self._path.exists() else None
        rows = [
            row
            for row in (_read(path) if path else self.rows)
            if row["step"] < step or (row["kind"] != "train" and row["step"] == step)
        ]
        if path is not None:
            try:
                files.write_text(path, "".join(map(_line, rows)))
            except OSError as error:
                raise _cannot_write(path, error) from error
        return rows

    def write(self, rows: Iterable[Row]) -> None:
        """Adds rows; a kill cannot undo it when this returns.

        Args:
          rows: The rows.

        Raises:
          LabError: If the file cannot be written.
        """
        rows = list(rows)
        self.rows += rows
        if self._path is None or not processes.first():
            return
        try:
            with open(self._path, "a") as file:
                file.write("".join(map(_line, rows)))
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def sync(self) -> None:
        """Brings what is written to the disk, so that not even a crash undoes it.

        Raises:
          LabError: If the disk does not take it.
        """
        if self._path is None or not processes.first():
            return
        try:
            with open(self._path, "a") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def evaluations(self) -> list[tuple[int, float]]:
        """Returns step and loss of each evaluation."""
        return [(r["step"], _number(r)) for r in self.rows if r["kind"] == "eval"]

    def train_losses(self, steps: int) -> list[float]:
        """Returns the training loss of each step, NaN for those that are not there."""
        losses = {r["step"]: _number(r) for r in self.rows if r["kind"] == "train"}
        return [losses.get(step, math.nan) for step in range(steps)]


def train_rows(
    block: Sequence[dict[str, Any]], step: int, tokens_per_second: float | None
) -> list[Row]:
    """Makes the rows of consecutive training steps.

    `learning_rate` is the rate of the first parameter group; if there are several, all
    are in `learning_rates`. What a tracked law foretells is there if there is one.

    Args:
      block: What `flax_step.train_step` returned, on the host.
      step: Updates done before the first of them.
      tokens_per_second: Rate over the block; None if that would tell of compilation.
    """
    rows = []
    for index, scalars in enumerate(block):
        rates = {group: float(x) for group, x in scalars["learning_rates"].items()}
        row = {
            "kind": "train",
            "step": step + index,
            "loss": float(scalars["loss"]),
            "learning_rate": next(iter(rates.values()), None),
            "gradient_norm": float(scalars["gradient_norm"]),
            "gradient_l1_norm": float(scalars["gradient_l1_norm"]),
            "update_norm": float(scalars["update_norm"]),
            "tokens_per_second": tokens_per_second,
        }
        foretold = flax_step.PREDICTIONS
        row |= {key: float(scalars[key]) for key in foretold if key in scalars}
        rows.append({**row, "learning_rates": rates} if len(rates) > 1 else row)
    return rows


def eval_row(batches: Sequence[dict[str, Any]], step: int) -> Row:
    """Makes the row of an evaluation: the mean of each metric over the batches.

    Args:
      batches: The metrics of each batch, on the host; all batches of one size.
      step: Updates done.
    """
    means = {name: fmean(float(b[name]) for b in batches) for name in batches[0]}
    return {"kind": "eval", "step": step, **means}


def _read(path: pathlib.Path) -> list[Row]:
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        rows.append(row)
    return rows


def _cannot_write(path: pathlib.Path, error: OSError) -> lab.LabError:
    return lab.LabError(f"cannot write {path}: {error.strerror}; checkpoints are kept")


def _number(row: Row) -> float:
    return math.nan if row["loss"] is None else row["loss"]


def _line(row: Row) -> str:
    # NaN is not JSON.
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite) + "\n"
