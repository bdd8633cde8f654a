"""What methods with a Kronecker factor for each axis share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optlab import kernels

# For each stack, for each of its axes: (k, d, d), or None for an axis without a factor.
Factors = tuple[tuple[Any, ...], ...]


def next_statistics(
    statistics: Factors, stacks: Sequence[jax.Array], decay: Any
) -> Factors:
    """Mixes in the products of a gradient with itself along each axis.

    Args:
      statistics: What there is.
      stacks: Stacks of gradients, (k, d_1, ..., d_r).
      decay: Decay of an average; None sums up.

    Returns:
      The next statistics; those that would not be finite stay as they were.
    """

    def mixed(old: jax.Array | None, stack: jax.Array, axis: int) -> jax.Array | None:
        if old is None:
            return None
        new = kernels.axis_product(stack, axis, stack.ndim - 1)
        new = old + new if decay is None else decay * old + (1 - decay) * new
        return where_finite(new, old)

    return tuple(
        tuple(mixed(old, stack, axis) for axis, old in enumerate(own))
        for own, stack in zip(statistics, stacks, strict=True)
    )


def where_finite(new: jax.Array, old: jax.Array) -> jax.Array:
    """Takes each new matrix of a stack that is finite, else the old one."""
    finite = jnp.all(jnp.isfinite(new), axis=(-2, -1), keepdims=True)
    return jnp.where(finite, new, old).astype(old.dtype)


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Divides; nothing over nothing is nothing."""
    return a / jnp.where(b == 0, 1, b)
