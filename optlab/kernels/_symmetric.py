"""What kernels of symmetric matrices share: checks, scaling, decompositions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def scaled(who: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Checks x; returns it over its largest entry, in float32 or wider, and that."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{who}: needs square matrices (..., n, n), got {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{who}: needs a floating dtype, got {x.dtype}")
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(y), axis=(-2, -1), keepdims=True, initial=0.0)
    largest = jnp.where(largest == 0, 1.0, largest)  # zero stays zero, not 0 / 0
    return y / largest, largest


def eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns eigenvalues, smallest first, and eigenvectors of (..., n, n)."""
    return decomposed(lambda y: tuple(jnp.linalg.eigh(y)), x)


def orthogonal(x: jax.Array) -> jax.Array:
    """Returns the orthogonal factor of the QR decomposition of (..., n, n)."""
    return decomposed(lambda y: (jnp.linalg.qr(y)[0],), x)[0]


def decomposed(function: Callable[[jax.Array], tuple], x: jax.Array) -> tuple:
    """Decomposes a batch; on CPU one matrix after the other.

    A batched call is no faster there, and inside a conditional it hangs now and then,
    on one device as on many (XLA's thread pool waits for itself, jax 0.10.2).
    """

    def one_by_one(x: jax.Array) -> tuple:
        results = jax.lax.map(function, x.reshape(-1, *x.shape[-2:]))
        return tuple(y.reshape(*x.shape[:-2], *y.shape[1:]) for y in results)

    return jax.lax.platform_dependent(x, cpu=one_by_one, default=function)
