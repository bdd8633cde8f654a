"""Inverses of symmetric matrices with damping."""

import jax
import jax.numpy as jnp
from jax.scipy import linalg

INVERSE_METHODS = ("cholesky", "eigh", "newton_schulz")


def damped_inverse(
    x: jax.Array, damping: float | jax.Array, method: str = "cholesky"
) -> jax.Array:
    """Inverts X + damping I for symmetric X without negative eigenvalues.

    Args:
      x: Matrices X, shape (..., n, n).
      damping: Damping, shape () or that of the leading axes; in units of X.
      method: 'cholesky', about n^3 multiplications and additions; 'eigh', about nine
        times that, and eigenvalues below zero count as zero; 'newton_schulz', products
        of matrices only, see `newton_schulz_inverse`.

    Returns:
      Array, shape (..., n, n), dtype of x, computed in float32 or wider. The damping
      counts as at least 4 n eps times the largest entry, so that rounding cannot make
      a singular X indefinite. Finite for entries from 1e-30 to 1e30.

    Raises:
      ValueError: If the method is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> [f"{entry:.3f}" for entry in kernels.damped_inverse(x, 1.0)[0]]
      ['0.375', '-0.125']

    Source:
      Martens, Grosse, "K-FAC", 2015, section 6. Differs: the floor of the damping.
    """
    if method not in INVERSE_METHODS:
        raise ValueError(
            f"damped_inverse: method must be one of {INVERSE_METHODS}, got {method!r}"
        )
    dtype, n = x.dtype, x.shape[-1]
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    damping = jnp.asarray(damping, x.dtype)[..., None, None]
    scale = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True) + damping
    scale = jnp.where(scale == 0, 1, scale)
    least = jnp.maximum(damping / scale, 4 * n * jnp.finfo(x.dtype).eps)
    eye = jnp.eye(n, dtype=x.dtype)
    if method == "eigh":
        values, vectors = jnp.linalg.eigh(x / scale)
        values = 1 / (jnp.maximum(values, 0) + least[..., 0])
        inverse = jnp.einsum(
            "...ij,...j,...kj->...ik", vectors, values, vectors, precision="highest"
        )
        return (inverse / scale).astype(dtype)
    damped = x / scale + least * eye
    if method == "newton_schulz":
        return (newton_schulz_inverse(damped) / scale).astype(dtype)
    factor = jnp.linalg.cholesky(damped)
    inverse = linalg.cho_solve((factor, True), jnp.broadcast_to(eye, damped.shape))
    return (inverse / scale).astype(dtype)


def newton_schulz_inverse(x: jax.Array, steps: int = 40) -> jax.Array:
    """Inverts positive definite matrices by products alone.

        Y_0 = X / (|X|_1 |X|_inf),   Y_{k+1} = 2 Y_k - Y_k X Y_k

    The error I - Y X is squared in each step. It starts at 1 - 1 / condition^2, so
    2 log2(condition) + 5 steps are needed.

    Args:
      x: Symmetric positive definite matrices, shape (..., n, n).
      steps: Number of steps; 40 reach a condition of 1e5.

    Returns:
      Array, shape (..., n, n), dtype of x, computed in float32 or wider. A zero matrix
      gives zero. About 2 steps n^3 multiplications and additions each.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.diag(jnp.array([1.0, 0.25]))
      >>> for steps in (1, 3, 6, 9):
      ...     print(f"{kernels.newton_schulz_inverse(x, steps)[1, 1]:.4f}")
      0.4844
      1.6131
      3.9357
      4.0000

    Source:
      Schulz, 1933; Ben-Israel, Cohen, 1966 (the start).
    """
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    scale = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    scale = jnp.where(scale == 0, 1, scale)
    x = x / scale
    # Symmetric: the largest column sum is the largest row sum.
    norm = jnp.max(jnp.sum(jnp.abs(x), axis=-1), axis=-1)[..., None, None]
    start = x / jnp.where(norm == 0, 1, norm) ** 2

    def step(_: int, y: jax.Array) -> jax.Array:
        y = 2 * y - jnp.einsum("...ij,...jk,...kl->...il", y, x, y, precision="highest")
        return (y + y.mT) / 2  # rounding makes it drift otherwise

    return (jax.lax.fori_loop(0, steps, step, start) / scale).astype(dtype)
