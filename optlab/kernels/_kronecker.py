"""Products of an array with a matrix along each of its axes, and their statistics."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def kronecker_apply(
    x: jax.Array,
    factors: Sequence[jax.Array | None],
    *,
    transpose: bool = False,
) -> jax.Array:
    """Multiplies an array by one matrix along each of its last axes.

        Y = X x_1 A_1 x_2 A_2 ...;   for a matrix, Y = A_1 X A_2^T

    which is the Kronecker product of the A_i times the entries of X, never formed.
    Cost: 2 d_1 ... d_r d_i FLOPs for each full factor of size d_i.

    Args:
      x: Array, shape (..., d_1, ..., d_r), floating; leading axes are batch.
      factors: One for each of the last r axes: a matrix (..., d_i, d_i), a diagonal
        (..., d_i), or None for the identity; the batch axes are those of x.
      transpose: Multiply by the A_i^T instead.

    Returns:
      Array of the shape and dtype of x; products are in float32 or wider.

    Raises:
      ValueError: If a factor has another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> swap, double = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.full(3, 2.0)
      >>> x = jnp.array([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]])
      >>> print(kernels.kronecker_apply(x, [swap, double]))
      [[10. 10. 10.]
       [ 2.  2.  2.]]

    Source:
      Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate
      curvature", 2015; for arrays of any order Gupta et al., "Shampoo", 2018.
    """
    batch, sizes = _split("kronecker_apply", x, len(factors))
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for index, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        if factor is None:
            continue
        diagonal = factor.shape == (*batch, size)
        if not diagonal and factor.shape != (*batch, size, size):
            raise ValueError(
                f"kronecker_apply: x has shape {x.shape}; its factor {index} needs"
                f" {(*batch, size, size)} or {(*batch, size)}, got {factor.shape}"
            )
        before, after = math.prod(sizes[:index]), math.prod(sizes[index + 1 :])
        y = y.reshape(*batch, before, size, after)
        if diagonal:
            y = y * factor[..., None, :, None]
        elif index == len(sizes) - 1:
            matrix = factor if transpose else factor.mT
            y = jnp.matmul(y[..., 0], matrix, precision="highest")
        else:
            y = jnp.einsum(
                "...ji,...ajb->...aib" if transpose else "...ij,...ajb->...aib",
                factor,
                y,
                precision="highest",
            )
        y = y.reshape(x.shape)
    return y.astype(x.dtype)


def axis_product(
    x: jax.Array, axis: int, order: int = 2, *, diagonal: bool = False
) -> jax.Array:
    """Multiplies an array with itself over all of its last axes but one.

        C = X_(i) X_(i)^T,   X_(i): axis i as rows;   of a matrix X X^T and X^T X

    Cost: 2 d_1 ... d_r d_i FLOPs.

    Args:
      x: Array, shape (..., d_1, ..., d_r), floating; leading axes are batch. Entries
        beyond 1e19 overflow float32.
      axis: The axis i, counted among the last r from 0.
      order: Number r of axes that are no batch.
      diagonal: Whether the diagonal of C is enough.

    Returns:
      Array, shape (..., d_i, d_i), or (..., d_i); dtype of x, the product is in float32
      or wider.

    Raises:
      ValueError: If x has fewer axes, or no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.array([[3.0, 4.0]])
      >>> print(kernels.axis_product(x, 0), kernels.axis_product(x, 1))
      [[25.]] [[ 9. 12.]
       [12. 16.]]

    Source:
      Gupta, Koren, Singer, "Shampoo", 2018, arXiv:1802.09568.
    """
    batch, sizes = _split("axis_product", x, order)
    if not 0 <= axis < order:
        raise ValueError(f"axis_product: axis {axis} is not one of {order} axes")
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    before, after = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
    # (..., before, d, after)
    y = y.reshape(*batch, before, sizes[axis], after)
    if diagonal:
        return jnp.sum(y * y, axis=(-3, -1)).astype(x.dtype)
    product = jnp.einsum("...aib,...ajb->...ij", y, y, precision="highest")
    return product.astype(x.dtype)


def _split(who: str, x: jax.Array, order: int) -> tuple[tuple, tuple]:
    """Returns the batch axes' sizes and those of the last `order` axes."""
    if not 0 < order <= x.ndim:
        raise ValueError(f"{who}: {order} factors do not fit an array of {x.shape}")
    return x.shape[: x.ndim - order], x.shape[x.ndim - order :]
