"""A training command for `test_kill`, which kills itself at a moment that is given.

usage: killed_run.py OUT WORKLOAD MOMENT; it prints a digest of the final parameters.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
from flax import nnx

from optlab import optimizers, schedules
from optlab.lab import train, workloads
from tests.lab import toy

STEPS = 9
KILL_STEP = 6


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(moment, workload):
    """Arms the kill; returns the workload to train."""
    rename, remove = os.rename, shutil.rmtree

    def dying_rename(source, target, **options):
        committing = pathlib.Path(target).name == f"{KILL_STEP:08d}"
        if committing and moment == "half-written checkpoint":
            data = pathlib.Path(source) / "ocdbt.process_0" / "d"
            largest = max(data.iterdir(), key=lambda file: file.stat().st_size)
            os.truncate(largest, largest.stat().st_size // 2)
        if committing and moment != "after the checkpoint":
            die()
        rename(source, target, **options)
        if committing:
            die()

    def dying_remove(path, *arguments, **options):
        files = sorted(file for file in pathlib.Path(path).rglob("*") if file.is_file())
        for file in files[: len(files) // 2]:
            file.unlink()
        die()
        remove(path, *arguments, **options)

    def dying_batch(seed, step):
        if step == KILL_STEP + 1:
            die()
        return workload.batch(seed, step)

    if moment == "training":
        return dataclasses.replace(workload, batch=dying_batch)
    if moment == "removing an old checkpoint":
        shutil.rmtree = dying_remove
    elif moment != "never":
        os.rename = dying_rename
    return workload


def main(out, name, moment):
    whole = toy.WORKLOAD if name == "toy" else workloads.get(name, size="tiny")
    workload = kill_at(moment, whole)
    model = workload.make_model(0)
    train.train(
        workload,
        optimizers.adamw(schedules.cosine(0.01, total_steps=STEPS, warmup_steps=2)),
        steps=STEPS,
        out=out,
        eval_every=4,
        checkpoint_every=2,
        keep=2,
        model=model,
        measure=False,
    )
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(model)):
        digest.update(np.asarray(leaf).tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
