"""The picture of a refined schedule."""

import os

import numpy as np

from optlab.lab.plots import _style


def refined(
    norms: np.ndarray,
    line: tuple[np.ndarray, np.ndarray],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Draws the norms of a run, and the schedule made of them beside linear decay.

    Args:
      norms: Gradient norm of each step of the run, shape (steps of the run,).
      line: Steps of the new run, and its rates over their peak.
      path: File to write: PNG, SVG or PDF.
      title: What stands above.
    """
    with _style.figure(path, (11.5, 4.6)) as figure:
        before, after = figure.subplots(1, 2)
        _style.title(figure, title)
        quiet, loud = _style.colours(2)
        before.plot(norms, color=loud, linewidth=1)
        before.set_ylim(bottom=0)
        _style.panel(before, "Gradient norms of the run", "norm")
        ends = (line[0][0], line[0][-1])
        after.plot(
            ends, (1, 0), color=quiet, linestyle=(0, (4, 3)), label="linear decay"
        )
        after.plot(*line, color=loud, linewidth=2, label="refined")
        after.set_ylim(bottom=0)
        _style.panel(after, "Schedule of the next run", "rate over peak")
        _style.legend(after)
