"""What kernels of symmetric matrices share: checks, scaling, eigendecomposition."""

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
    """Returns eigenvalues, smallest first, and eigenvectors of (..., n, n).

    On CPU one matrix after the other: a batch is no faster there, and inside a
    conditional on a mesh of virtual devices a batched call has been seen to hang.
    """

    def one_by_one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        flat = x.reshape(-1, *x.shape[-2:])
        values, vectors = jax.lax.map(lambda y: tuple(jnp.linalg.eigh(y)), flat)
        return values.reshape(x.shape[:-1]), vectors.reshape(x.shape)

    def together(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, vectors = jnp.linalg.eigh(x)
        return values, vectors

    return jax.lax.platform_dependent(x, cpu=one_by_one, default=together)
