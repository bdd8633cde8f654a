"""The pictures of laws: how they fit, and what they foretell."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from optlab import laws
from optlab.lab import forecasts
from optlab.lab.plots import _style

# The part of a run whose losses do not set the range of the picture: the first fall.
FIRST_FALL = 0.1

# Losses beyond which they are drawn finely.
MANY = 300

ACTUAL, PREDICTED, ALARM = _style.COLOURS[0], _style.COLOURS[2], _style.COLOURS[1]

Line = tuple[np.ndarray, np.ndarray]


def fit(
    runs: Sequence[forecasts.Comparison], path: str | os.PathLike, title: str
) -> None:
    """Draws how a law fits curves, and by how much it misses them.

    Args:
      runs: The curves and what the law says of them.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    with _style.figure(path, (11.5, 5.2)) as figure:
        losses, misses = figure.subplots(1, 2, width_ratios=(1.5, 1))
        _style.title(figure, title)
        # The first colour is the quiet one; curves are told apart by the others.
        for index, run in enumerate(runs):
            colour = _style.COLOURS[1 + index % (len(_style.COLOURS) - 1)]
            predicted = run.prediction.loss
            # Losses of single batches would hide the law behind broad lines.
            width = 3 if len(run.step) < MANY else 0.8
            losses.plot(run.step, run.actual, color=colour, alpha=0.35, linewidth=width)
            losses.plot(run.step, predicted, color=colour, label=run.name)
            misses.plot(run.step, 100 * (predicted / run.actual - 1), color=colour)
        misses.axhline(0, color=_style.INK, linewidth=0.8)
        _settle(losses, [(run.step, run.actual) for run in runs])
        misses.set_xlim(losses.get_xlim())
        _style.panel(losses, "Loss: measured, pale; as the law has it, full", "loss")
        _style.panel(misses, "Predicted above measured", "percent of the loss")
        _style.legend(losses)


def forecast(
    run: forecasts.Comparison,
    watch: forecasts.Watch,
    path: str | os.PathLike,
    title: str,
) -> None:
    """Draws a run and its forecast, and where the run leaves the interval.

    Args:
      run: The run and its forecast.
      watch: The run, smoothed, and the alarm.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    found = run.prediction
    with _style.figure(path, (10.5, 6.4)) as figure:
        losses, misses = figure.subplots(2, 1, height_ratios=(2, 1), sharex=True)
        _style.title(figure, title)
        losses.plot(run.step, run.actual, color=ACTUAL, alpha=0.45, linewidth=0.8)
        losses.plot(watch.step, watch.mean, color=_style.INK, label="measured, mean")
        _draw(losses, "predicted", found, PREDICTED)
        _settle(losses, [(run.step, run.actual), (run.step, found.loss)])
        _draw_misses(misses, run, watch)
        if watch.alarm is not None:
            _mark_alarm((losses, misses), watch.alarm)
        _style.panel(losses, "Loss, and the 90 % interval of the prediction", "loss")
        _style.panel(misses, "Measured above predicted", "percent")
        losses.set_xlabel("")
        _style.legend(losses)


def _draw_misses(axes: Axes, run: forecasts.Comparison, watch: forecasts.Watch) -> None:
    """Draws by how much the run misses its forecast, in percent of the forecast."""
    found = run.prediction

    def percent(losses: np.ndarray) -> np.ndarray:
        return 100 * (losses / found.loss - 1)

    low, high, actual = map(percent, (found.low, found.high, run.actual))
    axes.fill_between(run.step, low, high, color=PREDICTED, alpha=0.15, linewidth=0)
    axes.axhline(0, color=PREDICTED, linewidth=1.4)
    axes.plot(run.step, actual, color=ACTUAL, alpha=0.45, linewidth=0.8)
    mean = watch.mean / np.interp(watch.step, run.step, found.loss)
    axes.plot(watch.step, 100 * (mean - 1), color=_style.INK)
    reach = 1.3 * max(np.abs(x[len(x) // 20 :]).max() for x in (low, high, actual))
    axes.set_ylim(-reach, reach)


def predictions(
    found: Mapping[str, laws.Prediction], path: str | os.PathLike, title: str
) -> None:
    """Draws what a law foretells for schedules.

    Args:
      found: The predictions by the name of their schedule.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    with _style.figure(path, (10.5, 5.2)) as figure:
        axes = figure.subplots()
        _style.title(figure, title)
        colours = _style.colours(len(found))
        for (name, prediction), colour in zip(found.items(), colours, strict=True):
            _draw(axes, name, prediction, colour)
        _settle(axes, [(one.step, one.loss) for one in found.values()])
        _style.panel(axes, "Predicted loss and its 90 % interval", "loss")
        _style.legend(axes)


def _draw(axes: Axes, name: str, found: laws.Prediction, colour: str) -> None:
    axes.fill_between(
        found.step, found.low, found.high, color=colour, alpha=0.15, linewidth=0
    )
    label = f"{name}   {found.loss[-1]:.3f} at step {found.step[-1]}"
    axes.plot(found.step, found.loss, color=colour, linewidth=2, label=label)


def _mark_alarm(panels: tuple[Axes, Axes], step: int) -> None:
    for axes in panels:
        axes.axvline(step, color=ALARM, linewidth=1.4, linestyle=(0, (4, 2)))
    axes = panels[0]
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


def _settle(axes: Axes, lines: Sequence[Line]) -> None:
    """Shows the part of the losses that comes after the first fall."""
    last = max(steps[-1] for steps, _ in lines)
    kept = np.concatenate(
        [np.asarray(y)[np.asarray(x) >= FIRST_FALL * last] for x, y in lines]
    )
    room = 0.05 * (np.ptp(kept) or 1.0)
    axes.set_ylim(kept.min() - room, kept.max() + room)
    axes.set_xlim(0, 1.01 * last)
