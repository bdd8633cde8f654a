"""One process of a training command for `test_distributed`.

usage: distributed_run.py OUT [VICTIM [SIGNAL]]; process VICTIM gets the signal in step
7, SIGKILL by default; a run that gets another one would be long. The first process
prints a digest of the final state of the model, with its random keys.
"""

import dataclasses
import hashlib
import os
import signal
import sys

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, PartitionSpec

from optlab import kernels, optimizers, schedules, sharding
from optlab.lab import processes, train
from tests.lab import toy

STEPS, KILL_STEP = 9, 7


class Net(toy.Net):
    """With dropout, whose random keys are part of the state."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)

    def __call__(self, x):
        return self.down(self.dropout(nnx.tanh(self.up(x))))


WORKLOAD = dataclasses.replace(
    toy.WORKLOAD, make_model=lambda seed: Net(rngs=nnx.Rngs(seed))
)


def make_mesh(devices, axes=AxisType.Explicit):
    """Makes a mesh over some devices."""
    return jax.make_mesh(
        (len(devices),), ("fsdp",), devices=devices, axis_types=(axes,)
    )


def spec(path, leaf):
    """Divides the matrices that 8 devices divide; the other parameters are whole."""
    return PartitionSpec(None, "fsdp") if path == "up/kernel" else PartitionSpec()


def muon(mesh=None):
    """Makes Muon, over the mesh if there is one."""
    kernel = kernels.newton_schulz
    if mesh is not None:
        kernel = sharding.over_axis(kernel, mesh, "fsdp")
    rate = schedules.cosine(0.02, total_steps=STEPS, warmup_steps=2)
    rest = optimizers.adamw(0.01)
    return optimizers.muon(rate, rest=rest, orthogonalize=kernel)


def run(workload=WORKLOAD, mesh=None, tx=None, **settings):
    """Trains; returns the result and the model."""
    model = workload.make_model(0)
    result = train.train(
        workload,
        tx or muon(mesh),
        model=model,
        mesh=mesh,
        param_spec=spec,
        **{"steps": STEPS, "eval_every": 4, "checkpoint_every": 3, "measure": False}
        | settings,
    )
    return result, model


def digest(model):
    """Returns a digest of all bits of a model's state."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(model)):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        found.update(np.asarray(whole).tobytes())
    return found.hexdigest()


def main(out, victim="", name="SIGKILL"):
    processes.start()

    def batch(seed, step):
        if step == KILL_STEP and victim == str(jax.process_index()):
            os.kill(os.getpid(), getattr(signal, name))
        return toy.WORKLOAD.batch(seed, step)

    workload = dataclasses.replace(WORKLOAD, batch=batch)
    mesh = make_mesh(jax.devices())
    steps = STEPS if name == "SIGKILL" else 10**6
    _, model = run(workload, mesh, out=out, progress=False, steps=steps)
    found = digest(model)
    if processes.first():
        print("digest", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
