"""Loss curves from files: CSV, exports of W&B and TensorBoard, logs of the lab."""

import csv
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from optlab import lab, laws

# What columns are called, as patterns, the best first; letters are small, and '_'
# stands for spaces and dashes. W&B's own `_step` counts calls of its log, not updates.
STEPS = (
    *("train/global_step", "trainer/global_step", "global_step", "step"),
    *("train/step", "iterations?", "iter", "_step"),
)
LOSSES = {
    "train": (
        *("loss", "train/loss", "train_loss", "training_loss", "loss/train"),
        *("train/train_loss", "train(_|/)loss_step", "lm_loss"),
    ),
    "eval": (
        *("eval/loss", "eval_loss", "val/loss", "val_loss", "validation_loss"),
        *("validation/loss", "valid/loss", "valid_loss", "loss/(val|eval)"),
    ),
}
# Lightning names a rate after its optimizer: `lr-AdamW`, `lr-AdamW/pg1`.
RATES = ("lr|learning_rate", ".*/(lr|learning_rate)", "lr_[a-z0-9]+(/pg1)?")

# Columns beside the step that hold no measured number: TensorBoard's time, and the
# smallest and largest value that W&B adds to each.
NOT_VALUES = r"wall_time|epoch|relative_time.*|.*_step|.*__(min|max)|"

LEAST_SAMPLES = 5
# A law keeps the rate of every update.
MOST_STEPS = 10_000_000


def read(
    source: str | os.PathLike,
    *,
    losses: str = "train",
    window: int = 1,
    warmup_steps: int | None = None,
) -> laws.Curve:
    """Reads the loss curve of a run.

    Args:
      source: One of: a CSV file with columns for step, learning rate and loss, named
        `step,lr,loss` or as W&B or Lightning name them; two files, 'LOSS.csv,RATE.csv',
        of a tool that exports one number at a time, such as TensorBoard; the folder of
        a run of the lab, or its `metrics.jsonl`.
      losses: "train" or "eval".
      window: Number of consecutive losses to average, for losses of single batches,
        which scatter; 1 leaves them as they are.
      warmup_steps: Length of the linear warm-up of a file that begins after it; by
        default it lasts to the first sample. The lab's logs have every rate.

    Returns:
      The curve, named after the file.

    Raises:
      LabError: If there is no such curve; the message has file, line and remedy.
    """
    if losses not in LOSSES:
        raise lab.LabError(f"losses: 'train' or 'eval', got '{losses}'")
    loss_file, rate_file = _files(source)
    try:
        if loss_file.is_dir() or loss_file.suffix == ".jsonl":
            curve = _read_log(loss_file, losses)
        else:
            curve = _read_tables(loss_file, rate_file, losses, warmup_steps)
        return averaged(curve, window)
    except OSError as error:
        where = error.filename or loss_file
        raise lab.LabError(f"{where}: {error.strerror}; a curve was wanted") from error
    except ValueError as error:
        raise lab.LabError(f"{source}: {error}") from error


def averaged(curve: laws.Curve, window: int) -> laws.Curve:
    """Averages consecutive losses; a rest that fills no window is left out in front.

    >>> rate = np.full(12, 0.1)
    >>> curve = laws.Curve(np.arange(1, 12), np.arange(1.0, 12.0), rate)
    >>> averaged(curve, 2).step.tolist(), averaged(curve, 2).loss.tolist()
    ([2, 4, 6, 8, 10], [2.5, 4.5, 6.5, 8.5, 10.5])

    Args:
      curve: The curve.
      window: Number of losses to average.

    Returns:
      The curve; each mean stands at the mean of the steps, rounded down.

    Raises:
      ValueError: If too few means are left, or the window is below 1.
    """
    if window < 1:
        raise ValueError(f"a window has at least 1 loss, got {window}")
    rest = curve.step.size % window
    step = curve.step[rest:].reshape(-1, window).mean(axis=1).astype(int)
    if len(step) < LEAST_SAMPLES:
        raise ValueError(
            f"{curve.step.size} losses in windows of {window} leave {len(step)} means;"
            f" a curve needs at least {LEAST_SAMPLES}"
        )
    loss = curve.loss[rest:].reshape(-1, window).mean(axis=1)
    return laws.Curve(step, loss, curve.rate, curve.name)


def _files(source: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path | None]:
    text = os.fspath(source)
    loss, comma, rate = text.partition(",")
    if comma and not pathlib.Path(text).exists():
        return pathlib.Path(loss.strip()), pathlib.Path(rate.strip())
    return pathlib.Path(text), None


@dataclasses.dataclass(frozen=True)
class _Series:
    """Samples of one number, with the line of the file that each stands in."""

    file: pathlib.Path
    name: str
    lines: Sequence[int]
    steps: np.ndarray
    values: np.ndarray

    def fault(self, index: int, problem: str) -> lab.LabError:
        return lab.LabError(f"{self.file}, line {self.lines[index]}: {problem}")

    def check(self, *, positive: bool) -> None:
        """Checks that the steps rise and that the values can be losses or rates."""
        if len(self.steps) < LEAST_SAMPLES:
            raise lab.LabError(
                f"{self.file}: '{self.name}' has {len(self.steps)} samples; a curve"
                f" needs at least {LEAST_SAMPLES}"
            )
        self._check_steps()
        finite = np.isfinite(self.values)
        good = finite & ((self.values > 0) if positive else (self.values >= 0))
        if good.all():
            return
        index = int(np.argmin(good))
        if not finite[index]:
            remedy = "leave out the rows from where the run diverged"
        elif positive:
            remedy = "laws describe losses above 0"
        else:
            remedy = "a learning rate is 0 or more"
        raise self.fault(index, f"'{self.name}' is {self.values[index]:g}; {remedy}")

    def _check_steps(self) -> None:
        steps = self.steps
        good = (steps >= 0) & (steps <= MOST_STEPS) & (steps == np.floor(steps))
        if not good.all():
            index = int(np.argmin(good))
            raise self.fault(
                index,
                f"step {steps[index]:.15g} is no whole number from 0 to {MOST_STEPS};"
                " it must count updates, not tokens or epochs",
            )
        rises = np.diff(steps) > 0
        if rises.all():
            return
        index = int(np.argmin(rises)) + 1
        before, here = map(int, steps[index - 1 : index + 1])
        if here == before:
            raise self.fault(index, f"step {here} is there twice; keep one row of it")
        raise self.fault(
            index, f"step {here} comes after step {before}; sort the rows by step"
        )


@dataclasses.dataclass(frozen=True)
class _Table:
    """The cells of a CSV file, as text."""

    file: pathlib.Path
    names: list[str]
    lines: list[int]
    rows: list[list[str]]

    def find(self, patterns: Sequence[str]) -> int | None:
        """Finds the column with the best name."""
        plain = list(map(_plain, self.names))
        for pattern in patterns:
            found = [i for i, name in enumerate(plain) if re.fullmatch(pattern, name)]
            if len(found) > 1:
                names = " and ".join(f"'{self.names[index]}'" for index in found)
                raise lab.LabError(
                    f"{self.file}, line 1: {names} say the same; keep one column, of"
                    " one run"
                )
            if found:
                return found[0]
        return None

    def only(self) -> int | None:
        """Finds the column of a table that has one number beside the step."""
        plain = list(map(_plain, self.names))
        not_values = f"{NOT_VALUES}|{'|'.join(STEPS)}"
        found = [i for i, x in enumerate(plain) if not re.fullmatch(not_values, x)]
        return found[0] if len(found) == 1 else None

    def series(self, what: str, patterns: Sequence[str], *, alone: bool) -> _Series:
        """Returns the samples of a number; rows in which it is blank are left out."""
        step, column = self.find(STEPS), self.find(patterns)
        if column is None and alone:
            column = self.only()
        columns = ", ".join(name for name in self.names if name.strip())
        if step is None:
            raise lab.LabError(
                f"{self.file}, line 1: no column with the step among: {columns}; name"
                " one 'step'"
            )
        if column is None:
            name = "lr" if patterns is RATES else "loss"
            remedy = f"name one '{name}'"
            if not alone:
                remedy += ", or give it as a file of its own: LOSS.csv,RATE.csv"
            raise lab.LabError(
                f"{self.file}, line 1: no column with the {what} among: {columns};"
                f" {remedy}"
            )
        kept = [index for index, row in enumerate(self.rows) if row[column].strip()]
        return _Series(
            self.file,
            self.names[column],
            [self.lines[index] for index in kept],
            self._numbers(kept, step),
            self._numbers(kept, column),
        )

    def _numbers(self, kept: Sequence[int], column: int) -> np.ndarray:
        numbers = []
        try:
            for index in kept:
                numbers.append(float(self.rows[index][column]))
        except ValueError:
            index = kept[len(numbers)]
            cell = self.rows[index][column][:40]
            raise lab.LabError(
                f"{self.file}, line {self.lines[index]}: '{self.names[column]}' is"
                f" '{cell}', no number; repair or remove the row"
            ) from None
        return np.array(numbers, float)


def _plain(name: str) -> str:
    """A column's name without the run's, which W&B writes as 'run - train/loss'."""
    return re.sub(r"[ -]", "_", name.strip().rpartition(" - ")[2].lower())


def _read_table(file: pathlib.Path) -> _Table:
    try:
        # Spreadsheets begin a file with a byte order mark.
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text)
            names = next(reader, [])
            found = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error):
        raise lab.LabError(
            f"{file}: no text; of a TensorBoard event file, download the scalars as CSV"
            " and give two of them: LOSS.csv,RATE.csv"
        ) from None
    if not any(map(str.strip, names)):
        raise lab.LabError(f"{file}, line 1: no names of columns, as in step,lr,loss")
    for line, row in found:
        if len(row) != len(names):
            raise lab.LabError(
                f"{file}, line {line}: {len(row)} cells, but line 1 names"
                f" {len(names)} columns; repair or remove the row"
            )
    return _Table(file, names, [line for line, _ in found], [row for _, row in found])


def _read_tables(
    loss_file: pathlib.Path,
    rate_file: pathlib.Path | None,
    losses: str,
    warmup_steps: int | None,
) -> laws.Curve:
    alone = rate_file is not None
    table = _read_table(loss_file)
    loss = table.series(f"{losses} loss", LOSSES[losses], alone=alone)
    loss.check(positive=True)
    table = table if rate_file is None else _read_table(rate_file)
    rate = table.series("learning rate", RATES, alone=alone)
    rate.check(positive=False)
    if rate.values.min() > loss.values.max():
        raise lab.LabError(
            f"{loss.file}: every '{loss.name}' is below every rate; of two files, the"
            " one with the losses comes first"
        )
    _check_reach(loss, rate)
    first = int(rate.steps[0])
    return laws.Curve.from_samples(
        loss.steps.astype(int),
        rate.values,
        loss.values,
        rate_step=rate.steps.astype(int),
        warmup_steps=None if warmup_steps is None else min(warmup_steps, first),
        name=loss_file.stem,
    )


def _check_reach(loss: _Series, rate: _Series) -> None:
    """Refuses losses from where no rate is known."""
    beyond = np.diff(rate.steps).max()
    for index, end in ((0, rate.steps[0] - beyond), (-1, rate.steps[-1] + beyond)):
        step = loss.steps[index]
        if (step < end) if index == 0 else (step > end):
            raise loss.fault(
                index,
                f"step {step:.0f} has a loss, but the learning rates reach from step"
                f" {rate.steps[0]:.0f} to {rate.steps[-1]:.0f}; export both in full",
            )


def _read_log(source: pathlib.Path, losses: str) -> laws.Curve:
    file = source / "metrics.jsonl" if source.is_dir() else source
    if source.is_dir() and not file.exists():
        raise lab.LabError(f"{source}: no metrics.jsonl; give the folder of one run")
    rows = log_rows(file)
    loss = _log_series(file, rows, losses, "loss")
    loss.check(positive=True)
    rate = _log_series(file, rows, "train", "learning_rate")
    rate.check(positive=False)
    lost = rate.steps != np.arange(len(rate.steps))
    if lost.any():
        index = int(np.argmax(lost))
        raise rate.fault(
            index, f"the rate of update {index} is not in the log; run it once more"
        )
    # The rate of the update after the last loss belongs to no loss.
    steps = loss.steps.astype(int)
    return laws.Curve(steps, loss.values, rate.values, file.resolve().parent.name)


def log_rows(file: pathlib.Path) -> list[tuple[int, dict[str, Any]]]:
    """Reads the rows of a log of the lab.

    Args:
      file: The log, `metrics.jsonl`; half a line at its end is left out.

    Returns:
      Number of the line and row, which has 'kind' and 'step', of each line.

    Raises:
      LabError: If the file is no such log.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise lab.LabError(f"{file}: no text; the log of a run was wanted") from None
    lines = text.splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append((number, {"kind": row["kind"], "step": row["step"], **row}))
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not text.endswith("\n"):
                break  # A run that goes on may have written half a line.
            raise lab.LabError(
                f"{file}, line {number}: no row of a log of the lab, which has 'kind',"
                " 'step' and 'loss'; give other logs as CSV"
            ) from None
    return rows


def _log_series(
    file: pathlib.Path, rows: list[tuple[int, dict[str, Any]]], kind: str, name: str
) -> _Series:
    found = [(line, row) for line, row in rows if row["kind"] == kind]
    if found and all(row.get(name) is None for _, row in found):
        raise lab.LabError(f"{file}: the {kind} rows have no '{name}'; a law needs it")
    steps, values = [], []
    for line, row in found:
        try:
            steps.append(float(row["step"]))
            # Null stands for what was not finite.
            values.append(math.nan if row.get(name) is None else float(row[name]))
        except (TypeError, ValueError):
            raise lab.LabError(
                f"{file}, line {line}: 'step' or '{name}' is no number; repair the row"
            ) from None
    lines = [line for line, _ in found]
    return _Series(file, name, lines, np.array(steps), np.array(values))
