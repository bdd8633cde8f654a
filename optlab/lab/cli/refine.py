"""`optlab refine`."""

import pathlib
import types

from absl import flags

POSITIONAL = ("RUN",)

EXAMPLES = """\
optlab refine runs/train
    refined.json: the schedule that the run's gradient norms ask for
optlab refine runs/linear --method sgd --steps 2000 --out longer.csv
    for gradient descent, for a longer run, as a table

RUN is the folder of a run with its `metrics.jsonl`. The largest rate written
is 1; `optlab train --chain adamw+file:path=refined.json` scales the rates to
the peak of the chain and stretches them to its steps.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_enum(
        "method",
        "adam",
        ["adam", "sgd"],
        "What the next run trains with: adam weighs a step by one over the l1 norm of"
        " its gradient, sgd by one over the squared l2 norm.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "steps",
        None,
        "Steps of the next run; as many as RUN has if it is left out.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "out",
        "refined.json",
        "File for the rates, JSON or CSV; a picture of the same name is put beside it.",
        flag_values=values,
    )


def run(given: types.SimpleNamespace, command: str) -> None:
    """Refines a schedule and writes it with its picture.

    Args:
      given: The value of each flag.
      command: The command line; the files do not record it.
    """
    from optlab.lab import plots, rates, refine

    del command
    out = pathlib.Path(given.out)
    picture = out.with_suffix(".png")
    refined = refine.refine(given.run, method=given.method, steps=given.steps)
    factors = rates.every(refined.schedule, refined.steps)
    rates.write(out, factors)
    line = rates.line(refined.schedule, refined.steps)
    title = f"A schedule for {given.method}, refined from {given.run}"
    plots.refined(refined.norms, line, picture, title)
    print(f"{len(refined.norms)} norms; the rate peaks at step {factors.argmax()}")
    print(f"Written: {out} and {picture}")
