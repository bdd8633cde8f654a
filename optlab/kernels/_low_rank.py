"""Low-rank views of matrices: bases of their ranges, and coordinates in these."""

import jax
import jax.numpy as jnp


def singular_basis(x: jax.Array, rank: int) -> jax.Array:
    """Returns the leading left singular vectors of a matrix.

    The best basis that a matrix has: Q Q^T X is the nearest matrix of that rank. For
    the right singular vectors give the transpose.

    Args:
      x: Array, shape (..., m, n), floating; leading axes are batch.
      rank: Number r of vectors, from 1 to min(m, n).

    Returns:
      Q with orthonormal columns, shape (..., m, r), dtype of x; computed in float32 or
      wider. The signs are arbitrary. Finite for finite x; a zero matrix has some
      orthonormal basis. About 6 m n min(m, n) multiplications and additions.

    Raises:
      ValueError: If x is no matrix or has fewer than `rank` rows or columns.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.diag(jnp.array([1.0, 5.0, 2.0]))
      >>> print(abs(kernels.singular_basis(x, 1).ravel()))
      [0. 1. 0.]

    Source:
      The decomposition is that of `jax.numpy.linalg.svd`.
    """
    wide = _checked("singular_basis", x, rank)
    scaled, _ = _unit_scale(wide)
    stack = scaled.reshape(-1, *x.shape[-2:])
    # XLA's CPU devices share a pool of threads, and its batched decomposition waits for
    # threads of that pool: on eight devices at once all may wait for ever. One matrix
    # at a time needs no other thread.
    u = jax.lax.platform_dependent(
        stack, cpu=lambda y: jax.lax.map(_left_vectors, y), default=_left_vectors
    )
    return u[..., :rank].reshape(*x.shape[:-1], rank).astype(x.dtype)


def range_basis(
    x: jax.Array, rank: int, *, key: jax.Array | None = None, power_steps: int = 2
) -> jax.Array:
    """Finds an orthonormal basis that holds most of a matrix, by random products.

    Much cheaper than a decomposition when r is small, and it consists of products and
    thin QR factorisations, which accelerators do well.

        Q_0 = qr(X Omega),  Q_k = qr(X qr(X^T Q_{k-1})),  Omega normal, (n, r)

    Args:
      x: Array, shape (..., m, n), floating; leading axes are batch.
      rank: Number r of vectors, from 1 to min(m, n).
      key: Random key of Omega; None means `jax.random.key(0)`: the same result in each
        call and on every host.
      power_steps: How often X X^T is applied more; with singular values s the error
        beyond the best of this rank falls like (s_{r+1} / s_r)^(2 power_steps + 1).

    Returns:
      Q with orthonormal columns, shape (..., m, r), dtype of x; computed in float32 or
      wider. Its range is near that of the leading singular vectors, its columns are
      not these vectors. Exact for matrices of rank r or less. Finite for finite x.
      About (2 + 4 power_steps) m n r multiplications and additions.

    Raises:
      ValueError: As `singular_basis`; if power_steps is negative.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.outer(jnp.array([3.0, 4.0]), jnp.ones(6))
      >>> [f"{abs(entry):.4f}" for entry in kernels.range_basis(x, 1).ravel()]
      ['0.6000', '0.8000']

    Source:
      Halko, Martinsson and Tropp, "Finding structure with randomness", 2011,
      algorithm 4.4.
    """
    wide = _checked("range_basis", x, rank)
    if power_steps < 0:
        raise ValueError(
            f"range_basis: power_steps must be 0 or more, got {power_steps}"
        )
    scaled, _ = _unit_scale(wide)
    key = jax.random.key(0) if key is None else key
    omega = jax.random.normal(key, (x.shape[-1], rank), wide.dtype)
    q, _ = jnp.linalg.qr(_product("...mn,nr->...mr", scaled, omega))
    for _ in range(power_steps):
        back, _ = jnp.linalg.qr(_product("...mn,...mr->...nr", scaled, q))
        q, _ = jnp.linalg.qr(_product("...mn,...nr->...mr", scaled, back))
    return q.astype(x.dtype)


def project(
    x: jax.Array, left: jax.Array | None = None, right: jax.Array | None = None
) -> jax.Array:
    """Returns the coordinates of a matrix in bases of its rows, columns or both.

        low = L^T X R

    Args:
      x: Array, shape (..., m, n), floating.
      left: Basis L on the side of the rows, shape (..., m, r); None for the identity.
      right: Basis R on the side of the columns, shape (..., n, s); None alike.

    Returns:
      Array, shape (..., r, s) with r = m or s = n where there is no basis; dtype of x.
      2 m n r multiplications and additions for one basis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x, basis = jnp.arange(6.0).reshape(2, 3), jnp.array([[0.0], [1.0]])
      >>> print(kernels.project(x, basis))
      [[3. 4. 5.]]

    Source:
      Written for this library.
    """
    low = x if left is None else _product("...mn,...mr->...rn", x, left)
    low = low if right is None else _product("...mn,...ns->...ms", low, right)
    return low.astype(x.dtype)


def lift(
    low: jax.Array, left: jax.Array | None = None, right: jax.Array | None = None
) -> jax.Array:
    """Returns the matrix that has given coordinates: the transpose of `project`.

        x = L low R^T

    Args:
      low: Coordinates, shape (..., r, s), floating.
      left: Basis L, shape (..., m, r); None for the identity.
      right: Basis R, shape (..., n, s); None for the identity.

    Returns:
      Array, shape (..., m, n), dtype of low.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> low, basis = jnp.array([[5.0, 10.0]]), jnp.array([[0.6], [0.8]])
      >>> print(kernels.lift(low, basis))
      [[3. 6.]
       [4. 8.]]

    Source:
      Written for this library.
    """
    x = low if left is None else _product("...mr,...rn->...mn", left, low)
    x = x if right is None else _product("...ms,...ns->...mn", x, right)
    return x.astype(low.dtype)


def limit_growth(
    x: jax.Array, last: jax.Array, growth: float | jax.Array = 1.01
) -> tuple[jax.Array, jax.Array]:
    """Shortens a matrix that is longer than `growth` times the one before it.

        y = x min(1, growth last / ||x||_F)

    Args:
      x: Array, shape (..., m, n), floating.
      last: Frobenius norm that came out the time before, shape (...); 0 if there was
        none, and then nothing is shortened.
      growth: Largest ratio of two norms, above 1.

    Returns:
      y, dtype of x, and its norm, shape (...), dtype of last. A matrix with an entry
      that is not finite is not finite afterwards, and its norm counts as none.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> y, norm = kernels.limit_growth(10 * jnp.ones((1, 1)), jnp.ones(()))
      >>> print(y, norm)
      [[1.01]] 1.01

    Source:
      Chen et al., "Fira", 2024, arXiv:2410.01623, norm-growth limiter. Differs from the
      authors' code: theirs adds 1e-8 to `last`, so that after a zero gradient the norm
      has to climb from 1e-8 by one per cent a step; here a zero starts afresh.
    """
    scaled, size = _unit_scale(x.astype(last.dtype))
    norm = jnp.sqrt(jnp.sum(scaled * scaled, axis=(-2, -1))) * size[..., 0, 0]
    factor = jnp.where(last > 0, growth * last / jnp.where(norm > 0, norm, 1.0), 1.0)
    factor = jnp.where(norm > 0, jnp.minimum(factor, 1.0), 1.0)
    y = (x * factor[..., None, None]).astype(x.dtype)
    after = norm * factor
    return y, jnp.where(jnp.isfinite(after), after, 0.0).astype(last.dtype)


def _left_vectors(x: jax.Array) -> jax.Array:
    return jnp.linalg.svd(x, full_matrices=False)[0]


def _checked(who: str, x: jax.Array, rank: int) -> jax.Array:
    """Returns x in float32 or wider, if it is a matrix with that many directions."""
    if x.ndim < 2:
        raise ValueError(f"{who}: needs an array of two or more axes, got {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{who}: needs a floating dtype, got {x.dtype}")
    if not 1 <= rank <= min(x.shape[-2:]):
        raise ValueError(
            f"{who}: a matrix of shape {x.shape[-2:]} has bases of 1 to"
            f" {min(x.shape[-2:])} vectors, got rank={rank}"
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _unit_scale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divides by the largest entry, or squares of 1e30 would overflow."""
    size = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0.0)
    size = jnp.where(size == 0, 1.0, size)
    return x / size, size


def _product(indices: str, left: jax.Array, right: jax.Array) -> jax.Array:
    # On TPU the default would round float32 operands to bfloat16.
    return jnp.einsum(indices, left, right, precision="highest")
