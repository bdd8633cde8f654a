"""A kernel on the part of each matrix that is largest."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def largest_slices(
    kernel: Callable[[jax.Array], jax.Array], fraction: float
) -> Callable[[jax.Array], jax.Array]:
    """Applies a kernel to the largest slices of each matrix; zero elsewhere.

    Slices are taken along the shorter side, columns of a square matrix; of s slices
    those ceil(fraction s) with the largest sum of absolute values, one at least, are
    put together to a smaller matrix and go through the kernel. For Newton-Schulz on
    m x n, m <= n, the FLOPs fall from 20 m^2 n + 10 m^3 by fraction^2 and more.

    Args:
      kernel: Maps (..., m, n) to (..., m, n).
      fraction: Part of the slices, above 0 and at most 1.

    Returns:
      A kernel (..., m, n) -> (..., m, n) of any shape and dtype that `kernel` takes; an
      empty array is returned as it came.

    Raises:
      ValueError: If fraction is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> kernel = kernels.largest_slices(jnp.negative, fraction=0.5)
      >>> print(kernel(jnp.array([[1.0, 5.0, 2.0], [4.0, 0.0, 0.0]])))
      [[-1. -5. -2.]
       [ 0.  0.  0.]]

    Source:
      The selection of Dion2, see `optimizers.dion2`. Differs from its code: there
      slices are those of a device's shard, here of the whole matrix.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"largest_slices: fraction must be in (0, 1], got {fraction}")

    def apply(x: jax.Array) -> jax.Array:
        if not x.size:
            return x
        if x.shape[-1] <= x.shape[-2]:
            return rows(x.mT).mT
        return rows(x)

    def rows(x: jax.Array) -> jax.Array:
        count = max(1, math.ceil(fraction * x.shape[-2]))
        order = jnp.argsort(jnp.sum(jnp.abs(x), axis=-1), axis=-1, descending=True)
        chosen = order[..., :count, None]
        part = kernel(jnp.take_along_axis(x, chosen, axis=-2))
        # Rows are fetched, not scattered: on Explicit axes a scatter is ambiguous.
        rank = jnp.argsort(order, axis=-1)[..., None]
        back = jnp.take_along_axis(part, jnp.minimum(rank, count - 1), axis=-2)
        return jnp.where(rank < count, back, 0)

    return apply
