"""How all pictures look, and how a picture becomes a file."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from optlab import lab
from optlab.lab import files

# Told apart by most colour-blind readers; the baseline is the quiet one.
COLOURS = ("#6b7280", "#d1495b", "#00798c", "#edae49", "#6a4c93", "#3d5a80", "#52796f")
INK = "#1f2933"
RULE = "#d5dae0"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "lines.solid_capstyle": "round",
}

# Kinds of files, by their endings.
FORMATS = (".png", ".svg", ".pdf")


def check_path(path: str | os.PathLike) -> None:
    """Checks the ending of a picture's file.

    Args:
      path: The file.

    Raises:
      LabError: If it is none of `FORMATS`.
    """
    if pathlib.Path(path).suffix not in FORMATS:
        endings = ", ".join(FORMATS)
        raise lab.LabError(f"{path}: the name of a picture ends in one of {endings}")


@contextlib.contextmanager
def figure(path: str | os.PathLike, size: tuple[float, float]) -> Iterator[Figure]:
    """Makes a figure and writes it when it is drawn.

    Args:
      path: File to write; its folder is made if it is missing.
      size: Width and height in inches.

    Yields:
      The figure.

    Raises:
      LabError: If the file's ending is unknown, or it cannot be written.
    """
    check_path(path)
    path = pathlib.Path(path)
    # A figure without pyplot draws off screen and leaves a notebook's backend alone.
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        drawn = Figure(figsize=size, layout=layout)
        yield drawn
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as part:
                drawn.savefig(part, format=path.suffix[1:], dpi=150)
        except OSError as error:
            raise lab.LabError(f"cannot write {path}: {error.strerror}") from error


def title(figure: Figure, text: str) -> None:
    """Writes the figure's title."""
    figure.suptitle(text, x=0.012, ha="left", fontsize=14, fontweight="bold")


def panel(axes: Axes, text: str, unit: str) -> None:
    """Writes the title of a panel over steps, and what its other axis counts."""
    axes.set_title(text, loc="left", fontsize=11, pad=10)
    axes.set_ylabel(unit)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def legend(axes: Axes) -> None:
    """Names the lines of a panel, in front of what lies behind."""
    axes.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1)


def colours(count: int) -> list[str]:
    """Returns as many colours as are wanted; they repeat after the last one."""
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
