"""`optlab design`."""

import pathlib
import types

from absl import flags

from optlab.lab.cli import options

POSITIONAL = ("LAW",)

# What a designed schedule is compared with.
USUAL = (
    *("constant", "cosine", "linear", "rex", "uba"),
    *("wsd:decay=linear", "wsd:decay=one_minus_sqrt"),
)

EXAMPLES = """\
optlab design law.json --steps 24000 --peak 3e-4
    the schedule with the lowest loss at the end that the law foretells
optlab design law.json --steps 400 --peak 4e-3 --warmup-steps 20 \\
    --out runs/best.json
    with a warm-up of its own; runs/best.json and runs/best.png

`optlab train --chain adamw+file:path=design.csv` follows the schedule.
Without --warmup-steps it warms up for 5 % of the steps, as the others do.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    options.define_schedule(values, steps=None, peak=None)
    flags.DEFINE_string(
        "out",
        "design.csv",
        "File for the rates: CSV or JSON; the picture is written beside it.",
        flag_values=values,
    )


def run(given: types.SimpleNamespace, command: str) -> None:
    """Designs the schedule, compares it and writes it.

    Args:
      given: The value of each flag.
      command: The command line; nothing records it.
    """
    from optlab import laws, schedules
    from optlab.lab import forecasts, plots, rates, report

    del command
    if given.steps is None or given.peak is None:
        raise options.UsageError("--steps and --peak are wanted")
    out = pathlib.Path(given.out)
    rates.check_path(out)
    warmup = given.warmup_steps
    warmup = round(0.05 * given.steps) if warmup is None else warmup
    with options.checked():
        usual = rates.named(USUAL, given.peak, given.steps, warmup)
    fitted = forecasts.read_law(pathlib.Path(given.law))
    with forecasts.told():
        designed = laws.design(
            fitted, peak=given.peak, total_steps=given.steps, warmup_steps=warmup
        )
        compared = {"designed": designed, **usual}
        ranked = laws.rank(fitted, compared, given.steps)
    print(schedules.describe(designed, given.steps))
    report.show(forecasts.RANKING_COLUMNS, forecasts.ranking_rows(ranked))
    rates.write(out, rates.every(designed, given.steps))
    picture = out.with_suffix(".png")
    lines = {name: rates.line(s, given.steps) for name, s in compared.items()}
    title = "The designed schedule beside the usual ones"
    plots.schedules(lines, picture, title, first="designed")
    print(f"Written: {out} and {picture}")
