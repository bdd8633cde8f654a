"""What a person sees while a run goes on."""

import sys

from rich import console, progress

from optlab.lab import processes


def report(line: str) -> None:
    """Prints a line for the person at the terminal, beside what a program reads.

    Of several processes the first one speaks.
    """
    if processes.first():
        print(f"optlab: {line}", file=sys.stderr)


class Bar:
    """A progress bar with the loss, the rate and the time left.

    The bar shows nothing unless standard error is a terminal. Use as a context manager.

    Args:
      label: What is running.
      total: Steps of the run.
      start: Steps done before.
      show: False for silence on a terminal too.
    """

    def __init__(self, label: str, total: int, start: int = 0, *, show: bool = True):
        self._show = show
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("loss {task.fields[loss]}"),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
            disable=not (show and sys.stderr.isatty() and processes.first()),
        )
        self._task = self._progress.add_task(
            label, total=total, completed=start, loss="-", rate="compiling"
        )

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Prints a line beside the bar, terminal or not; nothing if `show` is off."""
        if self._show:
            report(line)

    def update(self, step: int, loss: float, steps_per_second: float) -> None:
        """Shows where the run is."""
        self._progress.update(
            self._task,
            completed=step,
            loss=f"{loss:.4f}",
            rate=f"{steps_per_second:.1f} steps/s",
        )
