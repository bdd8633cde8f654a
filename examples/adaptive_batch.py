"""Trains on handwritten digits with a batch that grows when noise hides the gradient.

The norm test measures how much the gradients of single examples differ, and the batch
grows until the noise of its mean is no longer than the gradient itself. The same
examples are then seen in far fewer updates. The rate grows with the root of the batch,
under a cosine schedule that counts examples, not updates.

    python adaptive_batch.py                # batches of 16 to 256
    python adaptive_batch.py --fixed        # batches of 16
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from optlab import controllers, estimators, optimizers, schedules

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=600, help="times 64 examples to see")
parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
parser.add_argument("--fixed", action="store_true", help="leave the batch as it is")
args = parser.parse_args()
PART, FIRST, LARGEST = 8, 16, 256  # examples in a microbatch, and in batches
TOTAL, WINDOW = 64 * args.steps, 64 * 20


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


def loss_fn(params, example):
    """Cross entropy in nats of one example."""
    x, y = example
    logits = logits_of(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


@jax.jit
def train_step(params, state, rows, count):
    """Takes one step; compiled once, for the number of microbatches is an argument."""
    found = estimators.gradient_statistics(loss_fn, params, rows, count=count)
    updates, state = tx.update(found.grads, state, params)
    return optax.apply_updates(params, updates), state, found


def draw(random):
    """Draws as many rows as the largest batch has; a small batch uses the first."""
    picked = random.integers(0, 1500, (LARGEST // PART, PART))
    return images[picked], labels[picked]


pixels, labels = datasets.load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))  # mixes the writers
images, labels = (pixels[order] / 16).astype(np.float32), labels[order]

controller = controllers.batch_size(
    FIRST,
    max_batch_size=FIRST if args.fixed else LARGEST,
    microbatch_size=PART,
    threshold=1.0,
    lr_scaling="sqrt",
)
rate = schedules.in_samples(schedules.cosine(0.1, total_steps=TOTAL), FIRST)
tx = optimizers.adagrad(rate, initial_square=1e-6)
params = init(jax.random.key(args.seed), 64, 64, 10)
state, now = tx.init(params), controller.init()
random, losses = np.random.default_rng(args.seed), []
while now.samples < TOTAL:
    params, state, found = train_step(params, state, draw(random), now.microbatches)
    before, now = now, controller.step(now, found.squared_norm, found.variance)
    if now.batch_size > before.batch_size:
        state = optax.tree.set(
            state,
            batch_size=jnp.int32(now.batch_size),
            from_update=jnp.int32(now.updates),
            from_samples=jnp.int32(now.samples),
            factor=jnp.float32(now.learning_rate),
        )
    losses += before.batch_size * [float(found.value)]
    if now.samples // WINDOW > before.samples // WINDOW:
        line = f"{now.samples:6d} examples  loss {np.mean(losses):.3f}"
        print(f"{line}  batch {before.batch_size}")
        losses = []

print(f"{now.updates} updates on {now.samples} examples")
accuracy = np.mean(logits_of(params, images[1500:]).argmax(-1) == labels[1500:])
print(f"test accuracy {accuracy:.3f}, the bar is at 0.90")
if accuracy < 0.90:
    raise SystemExit("adaptive_batch: the test accuracy is below the bar")
