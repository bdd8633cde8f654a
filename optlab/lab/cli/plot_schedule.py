"""`optlab plot-schedule`."""

import types
from typing import Any

from absl import flags

from optlab.lab.cli import options

POSITIONAL = ("SCHEDULE...",)

EXAMPLES = """\
optlab plot-schedule wsd rex uba --out schedules.png
    three schedules of 1000 steps
optlab plot-schedule cosine wsd:decay_steps=4000,decay=cosine --steps 24000 \\
    --peak 3e-4 --warmup-steps 2000
    a longer run; `optlab catalog --name wsd` shows the settings

optlab plot-schedule cosine linear wsd cycles --families
    a panel for each family

A schedule is SCHEDULE[:key=value,...]. A warm-up left out is 5 % of the
steps, a decay 40 %.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    options.define_schedule(values, steps=1000, peak=1e-3)
    flags.DEFINE_boolean(
        "families",
        False,
        "Draw a panel for each family of schedules.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out", "schedules.png", "Picture to write: PNG, SVG or PDF.", flag_values=values
    )


def run(given: types.SimpleNamespace, command: str) -> None:
    """Draws the schedules.

    Args:
      given: The value of each flag.
      command: The command line; a picture does not record it.
    """
    from optlab import catalog
    from optlab.lab import plots, rates

    del command
    with options.checked():
        schedules = rates.named(
            given.schedule, given.peak, given.steps, given.warmup_steps
        )
    lines = {text: rates.line(s, given.steps) for text, s in schedules.items()}
    if given.families:
        groups: dict[str, dict[str, Any]] = {}
        for text, line in lines.items():
            family = catalog.get(text.partition(":")[0], "schedules").family
            groups.setdefault(family, {})[text] = line
        plots.families(groups, given.out)
    else:
        plots.schedules(lines, given.out)
    print(f"Written: {given.out}")
