"""The AdamW that low-memory optimizers carry along for parameters of one axis."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import optimizers


def adamw(
    learning_rate: float, *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW that adds eps to the root before its bias is corrected.

    Seen from Adam as it is written elsewhere, eps shrinks from step to step.
    """
    return optax.inject_hyperparams(optimizers.adamw)(
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=lambda count: eps / (1 - b2 ** (count.astype(float) + 1)) ** 0.5,
        weight_decay=weight_decay,
    )


def adamw_afterwards(
    learning_rate: float,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    """The same with the decay after the step, and the option of no bias correction."""

    def init(params: optax.Params) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), zeros, zeros

    def update(updates: optax.Updates, state: Any, params: Any = None) -> Any:
        count, mu, nu = state
        t = count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, nu, updates)
        rate = learning_rate
        if bias_correction:
            rate = rate * (1 - b2**t) ** 0.5 / (1 - b1**t)

        def move(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            there = p - rate * m / (jnp.sqrt(v) + eps)
            return there * (1 - learning_rate * weight_decay) - p

        return jax.tree.map(move, params, mu, nu), (t, mu, nu)

    return optax.GradientTransformation(init, update)
