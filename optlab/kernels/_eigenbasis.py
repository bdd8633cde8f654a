"""Bases of eigenvectors, found once and then followed by power steps."""

import jax
import jax.numpy as jnp

from optlab.kernels import _symmetric


def eigenbasis(x: jax.Array, null: jax.Array | None = None) -> jax.Array:
    """Finds an orthogonal Q whose columns are eigenvectors, largest eigenvalue first.

        X = Q diag(e) Q^T,   e_1 >= e_2 >= ... >= e_n

    Where X has lost rank (the statistics of one gradient always have, on its longer
    side) an eigendecomposition fills the null space with whatever rounding makes of it,
    another basis on every machine. Here it is filled by unit vectors, those of the rows
    that the range covers least, made orthogonal to the range: the same everywhere.
    Finite for all input: zero, and a matrix with an infinite or undefined entry, give
    unit vectors. Entries of 1e30 and 1e-30 are as good as entries of 1.
    Cost: about 9 n^3 FLOPs for the eigendecomposition, 8 n^3 / 3 for the QR.

    Args:
      x: Array, shape (..., n, n), symmetric positive semidefinite, floating.
      null: Array, shape (..., n, n), whose columns stand in for those of Q without an
        eigenvalue; None means unit vectors as above.

    Returns:
      Array, shape (..., n, n), dtype of x; computed in float32 or wider. Signs of
      columns are arbitrary.

    Raises:
      ValueError: If x is not a stack of square matrices.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> basis = kernels.eigenbasis(jnp.diag(jnp.array([0.0, 3.0, 5.0])))
      >>> print(jnp.abs(basis))
      [[0. 0. 1.]
       [0. 1. 0.]
       [1. 0. 0.]]

    Source:
      The order is that of Vyas et al., "SOAP", 2024, arXiv:2409.11321; the null space
      is our own rule.
    """
    y, _ = _symmetric.scaled("eigenbasis", x)
    if x.size == 0:
        return x
    # From the largest eigenvalue down.
    values, vectors = (z[..., ::-1] for z in _symmetric.eigh(y))
    known = (values > _negligible(values))[..., None, :]
    vectors = jnp.where(known, vectors, 0)
    if null is None:
        covered = jnp.sum(vectors * vectors, axis=-1)
        order = jnp.argsort(-covered, axis=-1)
        null = (order[..., None, :] == jnp.arange(x.shape[-1])[:, None]).astype(y.dtype)
    basis = _symmetric.orthogonal(jnp.where(known, vectors, null))
    return basis.astype(x.dtype)


def refresh_eigenbasis(x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves a basis towards the eigenvectors of X by one power step and a QR.

    The columns are first sorted by their Rayleigh quotients, largest first, so what is
    kept in the coordinates of the old basis has to be sorted along:

        order = argsort(-diag(Q^T X Q)),   Q <- qr(X Q[:, order]).Q

    A column that X maps to nothing stays: a zero X, or one with an infinite or
    undefined entry, leaves the basis as it is. If the columns are independent but
    their images are not, the last ones are completed by what rounding makes of them.
    Cost: 2 n^3 FLOPs for the product, about 8 n^3 / 3 for the QR.

    Args:
      x: Array, shape (..., n, n), symmetric positive semidefinite, floating.
      basis: Array, shape (..., n, n), orthogonal.

    Returns:
      The new basis, shape (..., n, n), dtype of x, and the order, shape (..., n),
      int32: column j of the new basis comes from column order[j] of the old one.

    Raises:
      ValueError: If x is not a stack of square matrices, or basis has another shape.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.diag(jnp.array([1.0, 9.0]))
      >>> basis, order = kernels.refresh_eigenbasis(x, jnp.eye(2))
      >>> print(order, jnp.abs(basis))
      [1 0] [[0. 1.]
       [1. 0.]]

    Source:
      Vyas et al., "SOAP", 2024, arXiv:2409.11321, and the authors' code. Differs from
      it: columns that X maps to nothing stay, instead of being filled by rounding.
    """
    y, _ = _symmetric.scaled("refresh_eigenbasis", x)
    if basis.shape != x.shape:
        raise ValueError(
            f"refresh_eigenbasis: the basis has shape {basis.shape}, x has {x.shape}"
        )
    if x.size == 0:
        return x, jnp.zeros(x.shape[:-1], jnp.int32)
    basis = basis.astype(y.dtype)
    image = jnp.matmul(y, basis, precision="highest")
    quotients = jnp.sum(basis * image, axis=-2)
    quotients = jnp.where(quotients > _negligible(quotients), quotients, 0)
    order = jnp.argsort(-quotients, axis=-1).astype(jnp.int32)
    moved = jnp.where(quotients[..., None, :] > 0, image, basis)
    moved = jnp.take_along_axis(moved, order[..., None, :], axis=-1)
    return _symmetric.orthogonal(moved).astype(x.dtype), order


def _negligible(values: jax.Array) -> jax.Array:
    """Below this, rounding cannot tell an eigenvalue from zero."""
    top = jnp.max(values, axis=-1, keepdims=True)
    return values.shape[-1] * jnp.finfo(values.dtype).eps * top
