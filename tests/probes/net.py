"""A small net with its dense Hessian, for the probes to be held against."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

KEY = jax.random.key(0)
BATCHES, EXAMPLES = 4, 8
RANDOM = np.random.default_rng(0)
PARAMS = {
    "up": {
        "kernel": jnp.asarray(RANDOM.normal(size=(3, 8)), jnp.float32),
        "bias": jnp.asarray(RANDOM.normal(size=8), jnp.float32),
    },
    "down": {"kernel": jnp.asarray(RANDOM.normal(size=(8, 2)), jnp.float32)},
    "scale": jnp.asarray(0.7, jnp.float32),
}
SIZE = sum(x.size for x in jax.tree.leaves(PARAMS))
# Microbatches in front, then their examples.
DATA = {
    "x": jnp.asarray(RANDOM.normal(size=(BATCHES, EXAMPLES, 3)), jnp.float32),
    "y": jnp.asarray(RANDOM.normal(size=(BATCHES, EXAMPLES, 2)), jnp.float32),
}
WHOLE = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), DATA)


def model(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"])
    return params["scale"] * (hidden @ params["down"]["kernel"])


def error(outputs, batch):
    return jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, -1))


def loss(params, batch):
    return error(model(params, batch), batch)


def example_loss(params, example):
    return loss(params, jax.tree.map(lambda x: x[None], example))


@functools.cache
def hessian():
    """The Hessian of the loss on all data, (SIZE, SIZE), float64."""
    flat, back = ravel_pytree(PARAMS)
    found = jax.jit(jax.hessian(lambda w: loss(back(w), WHOLE)))(flat)
    return np.asarray(found, np.float64)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def like(vector):
    return ravel_pytree(PARAMS)[1](jnp.asarray(vector, jnp.float32))
