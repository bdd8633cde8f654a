"""Steepest descent in the spectral norm: polar factors of the right length."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def by_dual_norm(
    kernel: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
    """Multiplies each polar factor by the nuclear norm of its matrix.

    A polar factor forgets how large its matrix was. With O = kernel(X),

        X -> <X, O> O,    <X, O> = sum_ij X_ij O_ij = ||X||_* if O is the polar factor,

    is the direction that minimises <X, D> + ||D||^2 / 2 in the spectral norm, but for
    its sign: large gradients take large steps again, and small ones die out. Matrix by
    matrix over the leading axes.

    Args:
      kernel: Polar factor, (..., m, n) -> (..., m, n), such as `newton_schulz`.

    Returns:
      The kernel X -> <X, O> O, same shapes and dtypes. The product is summed in float32
      or wider; it is as large as the entries of X are, so in float16 it may overflow
      where X does not.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> kernel = kernels.by_dual_norm(kernels.newton_schulz)
      >>> x = jnp.diag(jnp.array([3.0, 4.0]))
      >>> [f"{entry:.2f}" for entry in jnp.diag(kernel(x))]
      ['4.80', '7.44']
      >>> [f"{entry:.2f}" for entry in jnp.diag(kernel(10 * x))]
      ['48.04', '74.38']

    Source:
      J. Bernstein, L. Newhouse, "Old optimizer, new norm", 2024, arXiv:2409.20325.
      Differs from Optax's `adaptive=True`, which sums <X, O> over all matrices of a
      stacked leaf; here each matrix has its own.
    """

    def scaled(x: jax.Array) -> jax.Array:
        y = kernel(x)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        inner = jnp.sum(x.astype(wide) * y.astype(wide), axis=(-2, -1), keepdims=True)
        return (inner * y.astype(wide)).astype(x.dtype)

    return scaled
