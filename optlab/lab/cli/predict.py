"""`optlab predict`."""

import functools
import json
import pathlib
import types
from collections.abc import Callable
from typing import Any

from absl import flags

from optlab.lab.cli import options

POSITIONAL = ("LAW",)

EXAMPLES = """\
optlab predict law.json --csv other.csv --json errors.json
    how well a law foretells a run that it was not fitted on
optlab predict law.json --csv runs/train --out run.png
    the picture of it: the run, the prediction, and where the two part
optlab predict law.json --schedule cosine --steps 24000 --peak 3e-4
    the loss at the end of a run that has not been made
optlab predict law.json --schedule linear --schedule wsd:decay_steps=4000 \\
    --steps 24000 --peak 3e-4 --out curves.csv
    several schedules, the best one first, and their whole curves
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_string(
        "csv",
        None,
        "A measured curve: a CSV file, two of them with a comma, or a run's folder.",
        flag_values=values,
    )
    options.define_losses(values)
    flags.DEFINE_multi_string(
        "schedule",
        [],
        "A schedule, as in wsd:decay_steps=4000; may be given again.",
        flag_values=values,
    )
    options.define_schedule(values, steps=None, peak=None)
    flags.DEFINE_string(
        "json", None, "File for the numbers that are printed.", flag_values=values
    )
    flags.DEFINE_string(
        "out",
        None,
        "File for the predicted curve: CSV, or a picture (PNG, SVG, PDF).",
        flag_values=values,
    )


def run(given: types.SimpleNamespace, command: str) -> None:
    """Predicts, and prints what comes out.

    Args:
      given: The value of each flag.
      command: The command line; nothing records it.
    """
    from optlab.lab import files, forecasts, plots

    del command
    if given.out and not given.out.endswith(".csv"):
        plots.check_path(given.out)
    if bool(given.csv) == bool(given.schedule):
        raise options.UsageError("give --csv CURVE, or --schedule once or more")
    fitted = forecasts.read_law(pathlib.Path(given.law))
    numbers = _run_of(given, fitted) if given.csv else _schedules(given, fitted)
    if given.json:
        text = json.dumps(numbers, indent=1, allow_nan=False) + "\n"
        files.write(pathlib.Path(given.json), text)
    written = [path for path in (given.json, given.out) if path]
    if written:
        print(f"Written: {' and '.join(written)}")


def _run_of(given: types.SimpleNamespace, fitted: Any) -> dict[str, float]:
    """Holds a measured curve against the law; returns the errors."""
    from optlab.lab import curves, forecasts, plots, report

    curve = curves.read(
        given.csv,
        losses=given.losses,
        window=given.window,
        warmup_steps=given.warmup_steps,
    )
    with forecasts.told():
        run = forecasts.compare(fitted, curve)
    report.show(("curve", *forecasts.ERROR_COLUMNS), [forecasts.error_row(run)])
    watch = forecasts.watch(run)
    print(forecasts.verdict(watch))
    if given.out:
        title = f"{run.name}: measured and predicted"
        draw = functools.partial(plots.forecast, run, watch, given.out, title)
        _write(given.out, {run.name: run.prediction}, draw)
    return run.errors


def _schedules(given: types.SimpleNamespace, fitted: Any) -> list[dict[str, Any]]:
    """Ranks schedules by their predicted losses; returns the ranking."""
    from optlab import laws
    from optlab.lab import forecasts, plots, rates, report

    if given.steps is None or given.peak is None:
        raise options.UsageError("--schedule needs --steps and --peak")
    with options.checked():
        schedules = rates.named(
            given.schedule, given.peak, given.steps, given.warmup_steps
        )
    with forecasts.told():
        ranked = laws.rank(fitted, schedules, given.steps)
        if given.out:
            predictions = {
                name: laws.predict(fitted, schedules[name], given.steps)
                for name, *_ in ranked
            }
            title = f"What the {fitted.law.name} law foretells"
            draw = functools.partial(plots.predictions, predictions, given.out, title)
            _write(given.out, predictions, draw)
    report.show(forecasts.RANKING_COLUMNS, forecasts.ranking_rows(ranked))
    keys = ("schedule", "final_loss", "low", "high")
    return [dict(zip(keys, row, strict=True)) for row in ranked]


def _write(out: str, predictions: Any, draw: Callable[[], None]) -> None:
    from optlab.lab import files, forecasts

    if out.endswith(".csv"):
        files.write(pathlib.Path(out), forecasts.curve_text(predictions))
    else:
        draw()
