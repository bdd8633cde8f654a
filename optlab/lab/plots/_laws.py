"""The pictures of laws: how they fit, and what they foretell."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from optlab.lab.plots import _style

# The part of a run whose losses do not set the range of the picture: the first fall.
FIRST_FALL = 0.04

ACTUAL, PREDICTED, ALARM = _style.COLOURS[0], _style.COLOURS[2], _style.COLOURS[1]


class Fit(NamedTuple):
    """A curve with what a law says of it: four arrays' worth of one picture.

    Attributes:
      name: Name of the curve.
      step: Updates done, shape (n,).
      actual: Losses, shape (n,).
      predicted: The law's losses, shape (n,).
    """

    name: str
    step: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray


def fit(fits: Sequence[Fit], path: str | os.PathLike, title: str) -> None:
    """Draws how a law fits curves, and by how much it misses them.

    Args:
      fits: The curves.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    with _style.figure(path, (11.5, 5.2)) as figure:
        losses, misses = figure.subplots(1, 2, width_ratios=(1.5, 1))
        _style.title(figure, title)
        # The first colour is the quiet one; curves are told apart by the others.
        colours = _style.colours(len(fits) + 1)[1:]
        for one, colour in zip(fits, colours, strict=True):
            losses.plot(one.step, one.actual, color=colour, alpha=0.35, linewidth=3)
            losses.plot(one.step, one.predicted, color=colour, label=one.name)
            misses.plot(one.step, _percent(one.predicted, one.actual), color=colour)
        misses.axhline(0, color=_style.INK, linewidth=0.8)
        _settled(losses, [(one.step, one.actual) for one in fits])
        _style.panel(losses, "Loss: broad as measured, thin as the law has it", "loss")
        _style.panel(misses, "Predicted above measured", "percent of the loss")
        _style.legend(losses)


class Forecast(NamedTuple):
    """What a law foretold for a run, at the steps of the prediction.

    Attributes:
      step: Updates done, shape (n,).
      loss: Predicted losses, shape (n,).
      low: Lower end of the interval, shape (n,).
      high: Upper end of the interval, shape (n,).
    """

    step: np.ndarray
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray


def forecast(
    foretold: Forecast,
    path: str | os.PathLike,
    title: str,
    *,
    actual: tuple[np.ndarray, np.ndarray] | None = None,
    smooth: tuple[np.ndarray, np.ndarray] | None = None,
    alarm: int | None = None,
) -> None:
    """Draws a predicted loss with its interval and, if there is a run, what happened.

    Args:
      foretold: The prediction.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
      actual: Steps and losses of the run.
      smooth: Steps and losses of the run, smoothed.
      alarm: Step at which the run has left the interval, or None.
    """
    with _style.figure(path, (10.5, 5.2)) as figure:
        axes = figure.subplots()
        _style.title(figure, title)
        axes.fill_between(
            foretold.step,
            foretold.low,
            foretold.high,
            color=PREDICTED,
            alpha=0.2,
            linewidth=0,
            label="interval of the prediction",
        )
        if actual is not None:
            axes.plot(
                *actual, color=ACTUAL, alpha=0.45, linewidth=0.8, label="measured"
            )
        if smooth is not None:
            axes.plot(*smooth, color=_style.INK, linewidth=1.6, label="measured, mean")
        label = f"predicted   {foretold.loss[-1]:.3f} at step {foretold.step[-1]}"
        axes.plot(
            foretold.step, foretold.loss, color=PREDICTED, linewidth=2, label=label
        )
        _settled(
            axes, [pair for pair in (actual, (foretold.step, foretold.loss)) if pair]
        )
        if alarm is not None:
            _mark_alarm(axes, alarm)
        _style.panel(axes, "Loss, predicted and measured", "loss")
        _style.legend(axes)


def _mark_alarm(axes: Axes, step: int) -> None:
    axes.axvline(step, color=ALARM, linewidth=1.4, linestyle=(0, (4, 2)))
    right = step > sum(axes.get_xlim()) / 2
    axes.annotate(
        f"leaves the interval at step {step}",
        (step, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-6 if right else 6, 8),
        textcoords="offset points",
        ha="right" if right else "left",
        color=ALARM,
        fontweight="bold",
    )


def _percent(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return 100 * (predicted / actual - 1)


def _settled(axes: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Shows the part of the losses that comes after the first fall."""
    last = max(step[-1] for step, _ in lines)
    kept = np.concatenate(
        [np.asarray(y)[np.asarray(x) >= FIRST_FALL * last] for x, y in lines]
    )
    room = 0.05 * (np.ptp(kept) or 1.0)
    axes.set_ylim(kept.min() - room, kept.max() + room)
    axes.set_xlim(0, 1.01 * last)
