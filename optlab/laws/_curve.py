"""A measured loss curve together with the rate of every update behind it."""

import dataclasses
from typing import Any

import numpy as np

from optlab.laws import _sums

# A change between two samples is a jump if those on both sides are this much smaller.
JUMP = 0.01

# Fewer samples tell nothing about a law with four parameters.
LEAST = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A loss curve: losses measured at some steps, and the rate of every update.

    Attributes:
      step: Updates applied when a loss was measured, shape (n,), int64, increasing.
      loss: The losses, in nats or any other unit, shape (n,), float64, positive.
      rate: Rate of update 0, 1, ..., T - 1, shape (T,), float64; T is at least the last
        step.
      name: What to call it in messages and tables.

    Raises:
      ValueError: If the arrays do not fit together or hold what no run can give.

    Example:
      >>> import numpy as np
      >>> from optlab import laws
      >>> step = np.arange(10, 60, 10)
      >>> curve = laws.Curve(step, 2 + 1 / step, np.full(50, 0.1), "constant")
      >>> curve.peak, curve.warmup_steps
      (0.1, 0)
    """

    step: np.ndarray
    loss: np.ndarray
    rate: np.ndarray
    name: str = "curve"

    def __post_init__(self) -> None:
        step = np.asarray(self.step)
        if not np.issubdtype(step.dtype, np.integer):
            step = _whole(self.name, step)
        arrays = {
            "step": step.astype(np.int64),
            "loss": np.asarray(self.loss, np.float64),
            "rate": np.asarray(self.rate, np.float64),
        }
        for key, array in arrays.items():
            if array.ndim != 1:
                raise ValueError(
                    f"laws.Curve '{self.name}': {key} has shape {array.shape}; one axis"
                    " is wanted"
                )
            object.__setattr__(self, key, array)
        _check(self)

    @classmethod
    def from_samples(
        cls,
        step: Any,
        rate: Any,
        loss: Any,
        *,
        rate_step: Any = None,
        warmup_steps: int | None = None,
        name: str = "curve",
    ) -> "Curve":
        """Rebuilds the rate of every update from the rates at the samples.

        Between samples the rate is a straight line. A jump between two flat stretches
        is a step down or up of the schedule, and is put half-way. What lies before the
        first sample is taken for a linear warm-up from zero.

        Args:
          step: Updates applied at each sample, shape (n,), increasing.
          rate: Rate in force there, that of the next update, shape (n,).
          loss: Loss measured there, shape (n,).
          rate_step: Updates applied at each rate, shape (m,), increasing, if the m
            rates were sampled elsewhere than the losses.
          warmup_steps: Steps of the warm-up, at most the first rate's; after it the
            rate is the first one. By default the warm-up ends at the first rate.
          name: What to call the curve.

        Returns:
          The curve.

        Raises:
          ValueError: If the arrays do not fit together, or the warm-up is longer than
            the first sample's step.

        Example:
          >>> from optlab import laws
          >>> curve = laws.Curve.from_samples(
          ...     [4, 6, 8, 10, 12], [2, 2, 2, 1, 1], [5, 4, 4, 3, 3]
          ... )
          >>> curve.rate.tolist()
          [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
        """
        step, rate = _whole(name, np.asarray(step)), np.asarray(rate, np.float64)
        at = step if rate_step is None else _whole(name, np.asarray(rate_step))
        if at.ndim != 1 or at.shape != rate.shape or not at.size or not step.size:
            raise ValueError(
                f"laws.Curve '{name}': step has shape {at.shape} and rate {rate.shape};"
                " one axis of the same length is wanted"
            )
        _check_steps(name, at)
        first = int(at[0])
        warmup = first if warmup_steps is None else warmup_steps
        if not 0 <= warmup <= first:
            raise ValueError(
                f"laws.Curve '{name}': warmup_steps={warmup}, but the first sample"
                f" stands at step {first}; a longer warm-up is in the samples"
            )
        ends, rates = _jumps(at, rate)
        known = np.concatenate([at, *ends])
        values = np.concatenate([rate, *rates])
        if warmup < first:
            known, values = np.append(known, warmup), np.append(values, rate[0])
        if warmup > 0:
            known, values = np.append(known, 0), np.append(values, 0.0)
        order = np.argsort(known, kind="stable")
        every = np.interp(np.arange(step.max()), known[order], values[order])
        return cls(step, np.asarray(loss, np.float64), every, name)

    @property
    def peak(self) -> float:
        """The largest rate."""
        return float(self.rate.max())

    @property
    def warmup_steps(self) -> int:
        """Updates before the rate stops rising for the first time."""
        return _sums.warmup_of(self.rate)


def _jumps(step: np.ndarray, rate: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Steps and rates of the two ends of each jump."""
    inner = np.abs(np.diff(rate))
    # Nothing is known of the stretches before the first and behind the last sample.
    around = np.pad(inner, 1, constant_values=np.inf)
    sides = np.maximum(around[:-2], around[2:])
    steps, rates = [], []
    for at in np.flatnonzero((inner > 0) & (sides <= JUMP * inner)):
        middle = (step[at] + step[at + 1] + 1) // 2
        steps.append(np.array([middle - 1, middle]))
        rates.append(np.array([rate[at], rate[at + 1]]))
    return steps, rates


def _whole(name: str, step: np.ndarray) -> np.ndarray:
    if np.issubdtype(step.dtype, np.integer):
        return step.astype(np.int64)
    try:
        numbers = step.astype(np.float64)
        whole = bool(np.all(numbers == np.round(numbers)))
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"laws.Curve '{name}': steps are whole numbers, got {step}")
    return numbers.astype(np.int64)


def _check_steps(name: str, step: np.ndarray) -> None:
    bad = np.flatnonzero(np.diff(step) <= 0)
    if bad.size:
        at = int(bad[0])
        raise ValueError(
            f"laws.Curve '{name}': step {step[at + 1]} follows step {step[at]} (sample"
            f" {at + 1}); sort the samples and keep one for each step"
        )
    if step.size and step[0] < 0:
        raise ValueError(f"laws.Curve '{name}': the first step is {step[0]}, below 0")


def _check(curve: Curve) -> None:
    step, loss, rate = curve.step, curve.loss, curve.rate
    who = f"laws.Curve '{curve.name}'"
    if step.shape != loss.shape:
        raise ValueError(f"{who}: {step.size} steps and {loss.size} losses")
    if step.size < LEAST:
        raise ValueError(f"{who}: {step.size} samples; at least {LEAST} are needed")
    _check_steps(curve.name, step)
    if rate.size < step[-1]:
        raise ValueError(
            f"{who}: {rate.size} rates, but the last loss was measured after"
            f" {step[-1]} updates; give the rate of every update, or use"
            " laws.Curve.from_samples"
        )
    for what, array, fine in (
        ("loss", loss, np.isfinite(loss) & (loss > 0)),
        ("rate", rate, np.isfinite(rate) & (rate >= 0)),
    ):
        if not fine.all():
            at = int(np.flatnonzero(~fine)[0])
            where = (
                f"sample {at}, step {step[at]}" if what == "loss" else f"update {at}"
            )
            least = "above 0" if what == "loss" else "0 or more"
            raise ValueError(
                f"{who}: the {what} at {where} is {array[at]}; it must be finite and"
                f" {least}"
            )
    if not rate.any():
        raise ValueError(f"{who}: every rate is 0; a law counts in sums of rates")
