"""The step that is planned and measured."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def step_of(tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """Returns (params, state, grads, extra_args) -> params and state."""

    def step(params: Any, state: Any, grads: Any, extra_args: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def placed(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    """Returns an abstract array at a place."""
    return jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.result_type(x), sharding=where)


def share(x: Any) -> int:
    """Returns the bytes of an array on one device."""
    where = getattr(x, "sharding", None)
    shape = x.shape if where is None else where.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize
