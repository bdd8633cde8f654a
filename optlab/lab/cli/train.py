"""`optlab train`."""

import pathlib
import types

from absl import flags

from optlab.lab.cli import options

EXAMPLES = """\
optlab train --chain muon+wsd --steps 160
    one run; metrics and checkpoints in runs/train
optlab train --workload digits --chain adamw+cosine --out runs/digits
    once more after an interruption: it goes on from the newest checkpoint
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    options.define_workload(values)
    flags.DEFINE_string("chain", "muon+wsd", "The chain.", flag_values=values)
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
    options.define_out(values, "runs/train")


def run(given: types.SimpleNamespace, command: str) -> None:
    """Trains and prints the final loss.

    Args:
      given: The value of each flag.
      command: The command line; a run does not record it.
    """
    from optlab.lab import chains, report, runs, train, workloads

    del command
    with options.checked():
        runs.check_workload(given.workload)
        chain = chains.parse(given.chain).explicit(given.steps, given.workload)
        tx, _ = chain.build()
    runs.make_folder(pathlib.Path(given.out))
    result = train.train(
        workloads.get(given.workload, size=given.size),
        tx,
        steps=chain.length,
        seed=given.seed,
        out=given.out,
        eval_every=given.eval_every,
        checkpoint_every=given.checkpoint_every,
        keep=given.keep,
        label=str(chain),
    )
    speed = report.number(result.seconds_per_step, ", {:.3g} s a step")
    print(chain)
    print(f"validation loss {result.final_loss:.4f} at step {chain.length}{speed}")
    print(f"Written: {given.out}")
