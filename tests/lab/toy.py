"""A workload that compiles in no time: a two-layer net learns a fixed function."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optlab.lab import workloads

WIDTH = 8


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(4, WIDTH, rngs=rngs)
        self.down = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.tanh(self.up(x)))


def draw(*seed: int) -> workloads.Batch:
    x = np.random.default_rng(seed).normal(size=(16, 4)).astype(np.float32)
    return {"x": x, "y": np.sin(x.sum(1, keepdims=True))}


def loss(model, batch):
    error = model(batch["x"]) - batch["y"]
    return jnp.mean(error**2), {"largest": jnp.abs(error).max()}


WORKLOAD = workloads.Workload(
    name="toy",
    make_model=lambda seed: Net(rngs=nnx.Rngs(seed)),
    batch=lambda seed, step: draw(seed, step),
    loss=loss,
    valid_batches=lambda: (draw(1, 2, 3), draw(4, 5, 6)),
    tokens_per_step=16,
)


def arrays(model: nnx.Module) -> list[np.ndarray]:
    """Returns the parameters of a model."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Tells whether two lists of arrays are equal in every bit."""
    return [(x.dtype, x.shape, x.tobytes()) for x in a] == [
        (y.dtype, y.shape, y.tobytes()) for y in b
    ]


class Interrupted(Exception):
    pass


class BatchNormNet(Net):
    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.tanh(self.norm(self.up(x))))


BATCH_NORM = dataclasses.replace(
    WORKLOAD, make_model=lambda seed: BatchNormNet(rngs=nnx.Rngs(seed))
)


def with_batch(act, workload=BATCH_NORM):
    """The workload; `act(index, batch)` sees each batch before it is used."""

    def batch(seed, index):
        drawn = workload.batch(seed, index)
        return act(index, drawn) or drawn

    return dataclasses.replace(workload, batch=batch)


def interrupt_at(moment, workload=BATCH_NORM):
    """The workload; the batch of this number ends the run."""

    def act(index, batch):
        if index == moment:
            raise Interrupted

    return with_batch(act, workload)


def log_of(folder, kind):
    """Returns the rows of one kind in the log of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]
