"""Finds which of four sources of handwritten digits has honest labels.

Three sources have half of their labels drawn at random. The model is trained on a
weighted mixture, and the weights are hyperparameters: they are moved so that the model
that the mixture makes does better on a few clean examples. Nothing tells the method
which source is which.

    python data_reweighting.py
    python data_reweighting.py --fixed      # all sources alike
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from optlab import optimizers, solvers

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=300, help="of the weights")
parser.add_argument("--seed", type=int, default=0, help="of labels, model and batches")
parser.add_argument("--fixed", action="store_true", help="leave the weights alike")
args = parser.parse_args()
SOURCES, EACH, BATCH = 4, 300, 64

pixels, labels = datasets.load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))  # mixes the writers
images, labels = (pixels[order] / 16).astype(np.float32), labels[order]
random = np.random.default_rng(args.seed)
clean = int(random.integers(SOURCES))
given = labels[: SOURCES * EACH].reshape(SOURCES, EACH).copy()
for source in set(range(SOURCES)) - {clean}:
    wrong = random.permutation(EACH)[: EACH // 2]
    given[source, wrong] = random.integers(0, 10, EACH // 2)
inputs = images[: SOURCES * EACH].reshape(SOURCES, EACH, -1)
held, test = slice(1200, 1500), slice(1500, None)


def init(key, pixels, width, classes):
    """Makes the weights of a network with one hidden layer."""
    up, down = jax.random.split(key)
    draw, bias = jax.nn.initializers.lecun_normal(), jnp.zeros(width)
    hidden = {"kernel": draw(up, (pixels, width)), "bias": bias}
    return {"hidden": hidden, "head": {"kernel": draw(down, (width, classes))}}


def logits_of(params, x):
    """Maps pixels, shape (..., 64), to logits, shape (..., 10)."""
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"]


def cross_entropy(params, x, y):
    """Mean cross entropy over the last axis of labels, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_of(params, x), y)
    return jnp.mean(losses, -1)


def upper(scores, params, batch):
    """Loss on clean examples."""
    return cross_entropy(params, *batch)


def lower(scores, params, batch):
    """Loss of the mixture: the same number of examples from each source, weighted."""
    return jax.nn.softmax(scores) @ cross_entropy(params, *batch)


def draw():
    """Draws a clean batch, and one from all sources."""
    rows = held.start + random.integers(0, held.stop - held.start, BATCH)
    picked = random.integers(0, EACH, (SOURCES, BATCH))
    which = np.arange(SOURCES)[:, None]
    return (images[rows], labels[rows]), (inputs[which, picked], given[which, picked])


weigher = optax.set_to_zero() if args.fixed else optax.adam(0.05)
bilevel = solvers.penalty_bilevel(
    upper, lower, weigher, optimizers.adamw(0.01), sigma=0.1
)
step = jax.jit(bilevel.step, donate_argnums=0)
state = bilevel.init(jnp.zeros(SOURCES), init(jax.random.key(args.seed), 64, 64, 10))
losses = []
for index in range(1, args.steps + 1):
    state, found = step(state, *draw())
    losses.append(found.value)
    if index % 20 == 0:
        line = f"step {index:3d}  loss {np.mean(losses):.3f}"
        weights = jax.nn.softmax(state.hyper)
        print(line, " weights", " ".join(f"{weight:.2f}" for weight in weights))
        losses = []

weight = jax.nn.softmax(state.hyper)[clean]
print(f"source {clean} is clean; its weight is {weight:.3f}")
accuracy = np.mean(logits_of(state.reference, images[test]).argmax(-1) == labels[test])
print(f"test accuracy {accuracy:.3f}, the bar is at 0.90")
if accuracy < 0.90:
    raise SystemExit("data_reweighting: the test accuracy is below the bar")
