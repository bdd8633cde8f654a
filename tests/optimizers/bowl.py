"""Half the square of x from (1, 2, 3), where the loss starts at 7."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

START = (1.0, 2.0, 3.0)


def loss(x):
    return jnp.sum(jnp.square(x.astype(jnp.float32))) / 2


def descend(tx, dtype=jnp.float32, steps=1000, watch=lambda state: state.count):
    """Returns the last point, the last state and what is watched at each step."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(x, state, x, value=loss(x))
        return (optax.apply_updates(x, updates), state), watch(state)

    @functools.partial(jax.jit, static_argnames="length")
    def run(x, length):
        return jax.lax.scan(step, (x, tx.init(x)), length=length)

    (x, state), seen = run(jnp.array(START, dtype), steps)
    return x, state, np.asarray(seen)


def final_loss(tx, dtype=jnp.float32, steps=1000):
    return float(loss(descend(tx, dtype, steps, lambda state: 0)[0]))
