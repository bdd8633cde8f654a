"""Trains a small Flax linen network on handwritten digits with Muon.

Flax's own TrainState hands no extra arguments to a chain. The one below does: the last
link of this chain wants the loss, to halve the updates when the loss stops falling.
"""

import argparse

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state
from sklearn import datasets

from optlab import inspection, optimizers, trees

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200, help="updates to take")
parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
args = parser.parse_args()


class Net(nn.Module):
    """Attention over the eight rows of an image, a hidden layer and a head."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images, shape (n, 8, 8), to logits, shape (n, 10)."""
        x = nn.Dense(32, name="up")(images)
        x += nn.MultiHeadDotProductAttention(4, name="attention")(nn.LayerNorm()(x))
        x = nn.relu(nn.Dense(64, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


class TrainState(train_state.TrainState):
    """Flax's train state, with extra arguments for the transformation."""

    def apply_gradients(self, *, grads, **extra_args) -> "TrainState":
        """Takes one step; `extra_args` go to `tx.update`."""
        tx = optax.with_extra_args_support(self.tx)
        updates, opt_state = tx.update(grads, self.opt_state, self.params, **extra_args)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state)


@jax.jit
def train_step(state, images, labels):
    """Takes one step: (state, batch) -> (state, loss in nats)."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads, value=loss), loss


pixels, labels = datasets.load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))  # mixes the writers
images, labels = pixels[order].reshape(-1, 8, 8) / 16, labels[order]

params = Net().init(jax.random.key(args.seed), images[:1])["params"]
print(trees.routing_table(params))
plateau = optax.contrib.reduce_on_plateau(0.5, patience=2, accumulation_size=10)
tx = optax.chain(optimizers.muon(0.02, rest=optimizers.adamw(0.01)), plateau)
state = TrainState.create(apply_fn=Net().apply, params=params, tx=tx)
random = np.random.default_rng(args.seed)
for step, batch in enumerate(random.integers(0, 1500, (args.steps, 64)), 1):
    state, loss = train_step(state, images[batch], labels[batch])
    if step % 20 == 0:
        print(f"{step:4d}  loss {loss:.3f}  updates x {state.opt_state[-1].scale}")

print("rate", inspection.hyperparams(state.opt_state)["matrix"]["learning_rate"])
guess = state.apply_fn({"params": state.params}, images[1500:]).argmax(-1)
accuracy = np.mean(guess == labels[1500:])
print(f"test accuracy {accuracy:.3f}, the bar is at 0.90")
if accuracy < 0.90:
    raise SystemExit("flax_linen: the test accuracy is below the bar")
