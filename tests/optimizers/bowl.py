"""Half the square of x from (1, 2, 3), where the loss starts at 7."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

START = (1.0, 2.0, 3.0)


def loss(x):
    return jnp.sum(jnp.square(x.astype(jnp.float32))) / 2


def descend(
    tx, dtype=jnp.float32, steps=1000, watch=lambda state: state.count, zeros=0
):
    """Returns the last point, the last state and what is watched after each step.

    The first gradients are zero, as many as `zeros` says.
    """
    tx = optax.with_extra_args_support(tx)

    def step(carry, t):
        x, state = carry
        g = jnp.where(t < zeros, 0, x)
        updates, state = tx.update(g, state, x, value=loss(x))
        return (optax.apply_updates(x, updates), state), watch(state)

    @functools.partial(jax.jit, static_argnames="length")
    def run(x, length):
        return jax.lax.scan(step, (x, tx.init(x)), jnp.arange(length))

    (x, state), seen = run(jnp.array(START, dtype), steps)
    return x, state, np.asarray(seen)


def final_loss(tx, dtype=jnp.float32, steps=1000, zeros=0):
    return float(loss(descend(tx, dtype, steps, lambda state: 0, zeros)[0]))
