"""`optlab race`."""

import types

from absl import flags

from optlab.lab import default_race
from optlab.lab.cli import options

EXAMPLES = """\
optlab race
    the default: AdamW against Muon with 40 % of its steps, 3 seeds
optlab race --steps 150 --seeds 1
    the same, half as long, one seed
optlab race --workload digits --steps 100 --chain adamw+cosine \\
    --chain lion+linear
    other chains; the first one is the baseline
optlab race --chain adamw:learning_rate=0.004,b2=0.99+cosine@400 \\
    --chain muon:rest.learning_rate=0.003,b1=0.9+wsd:decay_steps=40@160
    chains with settings and lengths of their own

A chain is OPTIMIZER[:key=value,...]+SCHEDULE[:key=value,...][@STEPS]. Keys
are the arguments that `optlab catalog --name NAME` shows. A learning rate
left out is the tuned one, a warm-up left out 5 % of the steps, a decay 40 %.
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    options.define_workload(values)
    flags.DEFINE_multi_string(
        "chain", [], "A chain; the first one is the baseline.", flag_values=values
    )
    counts = {
        "steps": (
            default_race.STEPS,
            "Steps of the chains without @STEPS; without chains, of the baseline.",
        ),
        "seeds": (default_race.SEEDS, "Number of seeds."),
        "eval_every": (
            default_race.EVAL_EVERY,
            "Steps between evaluations on the validation data.",
        ),
    }
    options.define_counts(values, counts)
    options.define_mesh(values)
    options.define_out(values, "runs/race")


def run(given: types.SimpleNamespace, command: str) -> None:
    """Runs the race and prints its table.

    Args:
      given: The value of each flag.
      command: The command line, for the record.
    """
    from optlab.lab import processes, race, report

    where = options.placed(given, command)
    with options.checked():
        planned = race.plan(
            given.workload,
            given.chain,
            given.steps,
            seeds=given.seeds,
            size=given.size,
            eval_every=given.eval_every,
        )
    out = given.out
    results = race.run(planned, out, command=command, where=where)
    if not processes.first():
        return
    report.show(report.COLUMNS, report.race_rows(results))
    print("\n".join(report.headlines(results)))
    print(f"Written: {out}/race.json, race.png and report.md")
