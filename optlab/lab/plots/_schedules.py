"""The picture of schedules."""

import os
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from optlab.lab.plots import _style

# Each time the colours are used up, the lines change their kind.
LINES = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))

# Letters of a label before it goes on in the next line.
LABEL = 40


def schedules(
    rates: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    title: str = "Schedules",
    *,
    first: str | None = None,
) -> None:
    """Draws schedules over their steps.

    Args:
      rates: Steps and rates of each schedule, by its label.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
      first: Label of the one that the picture is about, if there is one.
    """
    labels = [_wrapped(label) for label in rates]
    legend = sum(0.09 + 0.165 * (1 + label.count("\n")) for label in labels)
    with _style.figure(path, (11.5, max(5.2, 0.4 + legend))) as figure:
        axes = figure.subplots()
        _style.title(figure, title)
        for index, (label, line) in enumerate(rates.items()):
            look = _look(index)
            if label == first:
                look = {"color": _style.INK, "linewidth": 3.0, "zorder": 3}
            axes.plot(*line, label=labels[index], **look)
        last = max(steps[-1] for steps, _ in rates.values())
        axes.set_xlim(0, 1.01 * last)
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        _style.panel(axes, "Learning rate of each update", "learning rate")
        axes.set_xlabel("step: updates already applied")
        figure.legend(frameon=False, loc="outside right upper")


def families(
    rates: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    path: str | os.PathLike,
    title: str = "Schedules",
) -> None:
    """Draws schedules in panels, one for each family.

    Args:
      rates: For each family the steps and rates of its schedules, by their label.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    with _style.figure(path, (11.5, 0.5 + 2.9 * len(rates))) as figure:
        panels = figure.subplots(len(rates), 1, sharex=True, squeeze=False)[:, 0]
        _style.title(figure, title)
        for axes, (family, lines) in zip(panels, rates.items(), strict=True):
            for index, (label, line) in enumerate(lines.items()):
                axes.plot(*line, label=_wrapped(label), **_look(index))
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            _style.panel(axes, family, "learning rate")
            axes.set_xlabel("")
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.05))
        panels[-1].set_xlabel("step: updates already applied")


def _look(index: int) -> dict[str, Any]:
    """The look of the line at some place among others."""
    return {
        "color": _style.colours(index + 1)[index],
        "linestyle": LINES[index // len(_style.COLOURS) % len(LINES)],
        "linewidth": 1.9,
    }


def _wrapped(label: str) -> str:
    """Breaks a schedule's text after commas."""
    spaced = label.replace(",", ", ")
    lines = textwrap.wrap(spaced, LABEL, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line.strip() for line in lines).replace(", ", ",")
