"""Composes an optimizer from links of Optax and optlab, checks it, trains with it."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from optlab import inspection, links, optimizers, schedules, testing, trees

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200, help="updates to take")
parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
args = parser.parse_args()


def clipped_muon(learning_rate: float | optax.Schedule = 0.05, rest_rate=0.01):
    """Muon with decay for the matrices, Adam for the rest, both clipped as one."""
    decay, rate = optax.add_decayed_weights(0.01), links.scale_by_learning_rate
    matrix = optax.chain(optimizers.scale_by_muon(b1=0.9), decay, rate(learning_rate))
    rest = optax.chain(optax.scale_by_adam(), rate(rest_rate))
    groups = optax.partition(
        {"matrix": matrix, "rest": rest},
        lambda params: trees.labels(trees.matrix_views(params)),
    )
    # Without in_float32 the check below finds four faults, all in half precision.
    return links.in_float32(optax.chain(optax.clip_by_global_norm(1.0), groups))


def init(key, pixels, width, classes):
    """Makes the weights of a network with one hidden layer."""
    up, down = jax.random.split(key)
    draw, bias = jax.nn.initializers.lecun_normal(), jnp.zeros(width)
    hidden = {"kernel": draw(up, (pixels, width)), "bias": bias}
    return {"hidden": hidden, "head": {"kernel": draw(down, (width, classes))}}


def loss_fn(params, x, y):
    """Cross entropy in nats, and accuracy, on pixels (n, 64) and labels (n,)."""
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = hidden @ params["head"]["kernel"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.mean(), jnp.mean(logits.argmax(-1) == y)


not_asked = {
    "nonfinite_stays_in_its_leaf": "the clipping norm is one number for all leaves",
    "descends_quadratic": "left to the training below",
    "descends_rosenbrock": "left to the training below",
}
small = init(jax.random.key(0), 6, 4, 3)
testing.check(clipped_muon, small, exempt=not_asked).raise_for_failures()

pixels, labels = datasets.load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))  # mixes the writers
x, y = pixels[order] / 16, labels[order]
wsd = schedules.wsd(0.05, total_steps=args.steps, decay_steps=(args.steps + 1) // 2)
tx = clipped_muon(wsd)
gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
update = jax.jit(tx.update)

params = init(jax.random.key(args.seed), 64, 64, 10)
state = tx.init(params)
random = np.random.default_rng(args.seed)
for step, batch in enumerate(random.integers(0, 1500, (args.steps, 64)), 1):
    (loss, _), grads = gradient(params, x[batch], y[batch])
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    if step % 20 == 0:
        rate = inspection.hyperparams(state)["matrix"]["learning_rate"]
        print(f"{step:4d}  loss {loss:.3f}  rate {rate:.4f}")

_, accuracy = loss_fn(params, x[1500:], y[1500:])
print(f"test accuracy {accuracy:.3f}, the bar is at 0.90")
if accuracy < 0.90:
    raise SystemExit("compose_a_chain: the test accuracy is below the bar")
