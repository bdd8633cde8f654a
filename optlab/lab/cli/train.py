"""`optlab train`."""

import pathlib
import types
from typing import Any

from absl import flags

from optlab.lab.cli import options

EXAMPLES = """\
optlab train --chain muon+wsd --steps 160
    one run; metrics and checkpoints in runs/train
optlab train --workload digits --chain adamw+cosine --out runs/digits
    once more after an interruption: it goes on from the newest checkpoint
optlab train --workload digits --chain adamw --schedule autolrs --steps 400
    the learning rate is searched; that takes about as many steps again
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    options.define_workload(values)
    flags.DEFINE_string("chain", "muon+wsd", "The chain.", flag_values=values)
    flags.DEFINE_string(
        "schedule",
        None,
        "Schedule in place of the chain's: NAME[:key=value,...], or autolrs[:...] to"
        " search the learning rate in stages.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "law",
        None,
        "A law that `optlab fit` wrote: the log gets its predictions, and forecast.png"
        " shows them beside the run.",
        flag_values=values,
    )
    counts = {
        "steps": (400, "Steps, if the chain does not say @STEPS."),
        "eval_every": (20, "Steps between evaluations on the validation data."),
        "checkpoint_every": (100, "Steps between checkpoints."),
        "keep": (3, "Checkpoints to keep."),
    }
    options.define_counts(values, counts)
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the initial parameters and of the order of the data.",
        lower_bound=0,
        flag_values=values,
    )
    options.define_mesh(values)
    options.define_out(values, "runs/train")


def run(given: types.SimpleNamespace, command: str) -> None:
    """Trains and prints the final loss.

    Args:
      given: The value of each flag.
      command: The command line; a run does not record it.
    """
    from optlab.lab import (
        autolrs,
        chains,
        forecasts,
        processes,
        rate_file,
        report,
        runs,
        train,
        workloads,
    )

    text, controller, law = given.chain, None, None
    where = options.placed(given, command)
    with options.checked():
        runs.check_workload(given.workload)
        if given.schedule:
            text = autolrs.with_schedule(text, given.schedule)
        if autolrs.asks_for_it(text):
            searched = autolrs.plan(text, given.steps, given.workload)
            (tx, controller), steps = searched.build(where.mesh), searched.chain.length
            label, chain = str(searched), searched.chain
            if given.law:
                raise options.UsageError("--law needs a schedule; autolrs has none")
        else:
            chain = chains.parse(text).explicit(given.steps, given.workload)
            tx, schedule = chain.build(mesh=where.mesh)
            steps, label = chain.length, str(chain)
            if given.law:
                law = forecasts.read_law(pathlib.Path(given.law))
                tx = forecasts.tracked(tx, schedule, law, steps)
                # With another law it is another run.
                label += f", law {rate_file.digest_of(given.law)}"
    runs.make_folder(pathlib.Path(given.out))
    result = train.train(
        workloads.get(given.workload, size=given.size),
        tx,
        steps=steps,
        seed=given.seed,
        out=given.out,
        eval_every=given.eval_every,
        checkpoint_every=given.checkpoint_every,
        keep=given.keep,
        label=label,
        controller=controller,
        mesh=where.mesh,
        param_spec=where.param_spec,
        eval_params=chain.eval_params,
    )
    if not processes.first():
        return
    speed = report.number(result.seconds_per_step, ", {:.3g} s a step")
    print(label)
    if controller is not None:
        print(f"{steps} steps trained, {controller.search_steps} of search beside them")
    print(f"validation loss {result.final_loss:.4f} at step {steps}{speed}")
    if law is not None:
        _draw_forecast(given, law)
    print(f"Written: {given.out}")


def _draw_forecast(given: types.SimpleNamespace, law: Any) -> None:
    from optlab.lab import curves, forecasts, plots

    run = forecasts.compare(law, curves.read(given.out))
    watch = forecasts.watch(run)
    picture = pathlib.Path(given.out) / "forecast.png"
    plots.forecast(run, watch, picture, f"{given.out}: measured and predicted")
    print(forecasts.verdict(watch))
