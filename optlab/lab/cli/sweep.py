"""`optlab sweep`."""

import types

from absl import flags

from optlab.lab.cli import options

EXAMPLES = """\
optlab sweep --chain adamw+cosine --rates 2e-3,4e-3,8e-3 --steps 400
    three runs, one after another
optlab sweep --chain muon+wsd@160 --rates .01,.02,.04 --rest-rates 2e-3,4e-3
    six runs: each rate of Muon with each rate of its rest
optlab sweep --workload digits --chain sgd+linear --rates 0.01,0.1,1 --vmap
    all rates at once, as one program that is compiled once
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    options.define_workload(values)
    flags.DEFINE_string("chain", "adamw+cosine", "The chain.", flag_values=values)
    flags.DEFINE_list(
        "rates", [], "Learning rates, with commas between.", flag_values=values
    )
    flags.DEFINE_list(
        "rest_rates",
        [],
        "Learning rates of the rest, each tried with each of --rates.",
        flag_values=values,
    )
    counts = {
        "steps": (400, "Steps of each run, if the chain does not say @STEPS."),
        "seeds": (1, "Number of seeds."),
    }
    options.define_counts(values, counts)
    flags.DEFINE_boolean(
        "vmap",
        False,
        "Run all rates at once, as one vmapped program.",
        flag_values=values,
    )
    options.define_out(values, "runs/sweep")


def run(given: types.SimpleNamespace, command: str) -> None:
    """Runs the sweep and prints its table and its best rates.

    Args:
      given: The value of each flag.
      command: The command line, for the record.
    """
    from optlab.lab import report, sweep

    rates = options.numbers("--rates", given.rates)
    if not rates:
        raise options.UsageError("--rates is missing, as in --rates 1e-3,2e-3,4e-3")
    with options.checked():
        planned = sweep.plan(
            given.workload,
            given.chain,
            given.steps,
            rates=rates,
            rest_rates=options.numbers("--rest-rates", given.rest_rates),
            seeds=given.seeds,
            size=given.size,
            vmap=given.vmap,
        )
    out = given.out
    results = sweep.run(planned, out, command=command)
    keys = list(results["points"][0]["rates"])
    rows = [
        (
            *(f"{point['rates'][key]:g}" for key in keys),
            report.loss(point["final_loss"]),
            "best" if point is results["best"] else "",
        )
        for point in results["points"]
    ]
    report.show((*keys, "final loss", ""), rows)
    if results["best"]:
        print(f"Best: {results['best']['chain']}")
    for key in results["at_edge"]:
        print(f"The best {key} is at the edge of those tried: widen the sweep.")
    print(f"Written: {out}/sweep.json")
