"""Trains a small network with Muon on a mesh: 8 simulated devices, or a pod's own.

    python train_on_a_mesh.py                 # 8 simulated devices of this machine
    python train_on_a_mesh.py --distributed   # the same command on each host of a pod

Parameters, momentum and batches are divided over the devices. Model and optimizer are
those of one device, told where the mesh is; the losses are the same.
"""

import argparse
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn import datasets

from optlab import kernels, optimizers, schedules, sharding
from optlab.lab import processes

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200, help="updates to take")
parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
parser.add_argument("--tp", type=int, default=1, help="devices that share a layer")
parser.add_argument("--distributed", action="store_true", help="one of several hosts")
args = parser.parse_args()

if args.distributed:
    processes.start()
else:
    jax.config.update("jax_num_cpu_devices", 8)  # for a CPU; others have their own


class Net(nnx.Module):
    """A convolution, a hidden layer and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(256, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images, shape (n, 8, 8), to logits, shape (n, 10)."""
        x = nnx.relu(self.conv(images[..., None]))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        return self.head(nnx.relu(self.hidden(x)))


def examples(array, rows):
    """Divides a batch over the mesh; each process reads the rows of its own devices."""

    def read(part: Any):
        return array[rows[part[0]]]

    shape, where = (len(rows), *array.shape[1:]), NamedSharding(mesh, P("fsdp"))
    return jax.make_array_from_callback(shape, where, read)


def loss_fn(params, images, labels):
    """Returns the mean cross entropy in nats."""
    logits = nnx.merge(graphdef, params)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def accuracy(params, images, labels):
    """Returns the fraction of right guesses."""
    return (nnx.merge(graphdef, params)(images).argmax(-1) == labels).mean()


sizes = jax.device_count() // args.tp, args.tp
mesh = jax.make_mesh(sizes, ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
pixels, labels = datasets.load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))  # mixes the writers
images = (pixels[order].reshape(-1, 8, 8) / 16).astype(np.float32)
labels = labels[order]

graphdef, params = nnx.split(Net(nnx.Rngs(args.seed)))
# The hidden layer is divided over both axes; the other parameters are small.
shardings = jax.tree.map(
    lambda x: NamedSharding(mesh, P("fsdp", "tp") if x.size > 4096 else P()), params
)
params = jax.device_put(jax.tree.map(np.asarray, params), shardings)

rate = schedules.wsd(0.05, total_steps=args.steps, decay_steps=(args.steps + 1) // 2)
orthogonalize = sharding.over_axis(kernels.newton_schulz, mesh, ("fsdp", "tp"))
tx = optimizers.muon(rate, rest=optimizers.adamw(0.01), orthogonalize=orthogonalize)
tx = sharding.placed(tx, shardings)


@jax.jit
def train_step(params, state, images, labels):
    """Takes one step; returns the new parameters and state, and the loss."""
    loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


talks = jax.process_index() == 0
if talks:
    print("devices", mesh.size, "processes", jax.process_count())
    print("hidden layer", params["hidden"]["kernel"][...].sharding.spec)
with jax.set_mesh(mesh):
    state = sharding.init_sharded(tx, params)
    random = np.random.default_rng(args.seed)
    for step, batch in enumerate(random.integers(0, 1500, (args.steps, 64)), 1):
        data = examples(images, batch), examples(labels, batch)
        # Simulated devices share threads: one program at a time, or they may hang.
        params, state, loss = jax.block_until_ready(train_step(params, state, *data))
        if step % 20 == 0 and talks:
            print(f"{step:4d}  loss {loss:.3f}")
    reached = float(accuracy(params, images[1500:], labels[1500:]))
if talks:
    print(f"test accuracy {reached:.3f}, the bar is at 0.90")
if reached < 0.90:
    raise SystemExit("train_on_a_mesh: the test accuracy is below the bar")
