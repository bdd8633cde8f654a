"""`optlab train`."""

import dataclasses
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
optlab train --workload digits --chain adagrad --batch-size norm --steps 400
    the batch grows when noise hides the gradient: fewer updates
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
        "batch_size",
        None,
        "Lets the batch grow: TEST[:key=value,...], the test norm, inner_product or"
        " augmented. Steps then still are those of the workload's own batch.",
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
    from optlab.lab import growth, processes, report, runs, train, workloads

    where = options.placed(given, command)
    with options.checked():
        runs.check_workload(given.workload)
        plan = _plan(given, where.mesh)
    runs.make_folder(pathlib.Path(given.out))
    result = train.train(
        workloads.get(given.workload, size=given.size),
        plan.tx,
        steps=plan.scale * plan.chain.length,
        seed=given.seed,
        out=given.out,
        eval_every=plan.scale * given.eval_every,
        checkpoint_every=plan.scale * given.checkpoint_every,
        keep=given.keep,
        label=plan.label,
        controller=plan.controller,
        growing=plan.growing,
        mesh=where.mesh,
        param_spec=where.param_spec,
        eval_params=plan.chain.eval_params,
    )
    if not processes.first():
        return
    steps, search = plan.chain.length, plan.controller
    speed = report.number(result.seconds_per_step, ", {:.3g} s a step")
    print(plan.label)
    if search is not None:
        print(f"{steps} steps trained, {search.search_steps} of search beside them")
    if plan.growing is not None:
        print(growth.summary(given.out))
        speed = report.number(result.seconds_per_step, ", {:.3g} s a microbatch")
    print(f"validation loss {result.final_loss:.4f} at step {steps}{speed}")
    if plan.law is not None:
        _draw_forecast(given, plan.law)
    print(f"Written: {given.out}")


@dataclasses.dataclass
class _Plan:
    """What to train with: optimizer, chain, label, and what a flag has added."""

    tx: Any
    chain: Any
    label: str
    controller: Any = None
    growing: Any = None
    law: Any = None
    scale: int = 1  # microbatches in a step of the chain


def _plan(given: types.SimpleNamespace, mesh: Any) -> _Plan:
    """Builds what the flags ask for."""
    from optlab.lab import (
        autolrs,
        batch_sizes,
        chains,
        forecasts,
        rate_file,
        workloads,
    )

    text = given.chain
    if given.schedule:
        text = autolrs.with_schedule(text, given.schedule)
    if given.batch_size and given.law:
        raise options.UsageError("--law is for batches of one size")
    if autolrs.asks_for_it(text):
        if given.law:
            raise options.UsageError("--law needs a schedule; autolrs has none")
        if given.batch_size:
            raise options.UsageError("--batch-size needs a schedule; autolrs has none")
        searched = autolrs.plan(text, given.steps, given.workload)
        tx, controller = searched.build(mesh)
        return _Plan(tx, searched.chain, str(searched), controller=controller)
    chain = chains.parse(text).explicit(given.steps, given.workload)
    if given.batch_size:
        workload = workloads.get(given.workload, size=given.size)
        planned = batch_sizes.plan(given.batch_size, chain, workload)
        tx, growing = planned.build(mesh)
        return _Plan(
            tx, chain, str(planned), growing=growing, scale=planned.microbatches
        )
    tx, schedule = chain.build(mesh=mesh)
    if not given.law:
        return _Plan(tx, chain, str(chain))
    law = forecasts.read_law(pathlib.Path(given.law))
    tx = forecasts.tracked(tx, schedule, law, chain.length)
    # With another law it is another run.
    label = f"{chain}, law {rate_file.digest_of(given.law)}"
    return _Plan(tx, chain, label, law=law)


def _draw_forecast(given: types.SimpleNamespace, law: Any) -> None:
    from optlab.lab import curves, forecasts, plots

    run = forecasts.compare(law, curves.read(given.out))
    watch = forecasts.watch(run)
    picture = pathlib.Path(given.out) / "forecast.png"
    plots.forecast(run, watch, picture, f"{given.out}: measured and predicted")
    print(forecasts.verdict(watch))
