"""Matrices with orthonormal columns: directions along them, and ways back to them."""

import jax
import jax.numpy as jnp

from optlab.kernels import _symmetric

# Whether P stands for its range alone, or for its columns.
MANIFOLDS = ("grassmann", "stiefel")
RETRACTIONS = ("exp", "qr", "polar")


def tangent_part(p: jax.Array, d: jax.Array, manifold: str = "grassmann") -> jax.Array:
    """Takes out of a direction what would not keep columns orthonormal.

        G = D - P P^T D                          grassmann
        G = D - P (P^T D + D^T P) / 2            stiefel

    On the Grassmann manifold P stands for the subspace that it spans, so what turns P
    inside that subspace is taken out too. Both are the nearest tangents in the
    Euclidean metric.

    Args:
      p: P, shape (..., n, k), n >= k, orthonormal columns, floating.
      d: D, of that shape.
      manifold: 'grassmann' or 'stiefel'.

    Returns:
      G, dtype of d; computed in float32 or wider. About 8 n k^2 multiplications and
      additions.

    Raises:
      ValueError: If the shapes or the name do not do.
      TypeError: If p is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> p, d = jnp.eye(3)[:, :2], jnp.arange(6.0).reshape(3, 2)
      >>> print(kernels.tangent_part(p, d))
      [[0. 0.]
       [0. 0.]
       [4. 5.]]
      >>> print(kernels.tangent_part(p, d, "stiefel"))
      [[ 0.  -0.5]
       [ 0.5  0. ]
       [ 4.   5. ]]

    Source:
      A. Edelman, T. Arias, S. Smith, "The geometry of algorithms with orthogonality
      constraints", 1998, arXiv:physics/9806030, sections 2.2 and 2.5.
    """
    base, step = _checked("tangent_part", p, d)
    if manifold not in MANIFOLDS:
        raise ValueError(
            f"tangent_part: manifold must be one of {MANIFOLDS}, got {manifold!r}"
        )
    # Twice: what P is off by, times D, is left the first time, and a long step along
    # that would multiply it.
    for _ in range(2):
        inner = _product(base.mT, step)
        inner = inner if manifold == "grassmann" else (inner + inner.mT) / 2
        step = step - _product(base, inner)
    return step.astype(d.dtype)


def retract(p: jax.Array, step: jax.Array, method: str = "qr") -> jax.Array:
    """Moves a matrix with orthonormal columns along a tangent, to another such matrix.

    With U S V^T the thin singular value decomposition of the step, or of P + step,

        P' = P V cos(S) V^T + U sin(S) V^T       exp: the geodesic of Grassmann
        P' = Q of QR(P + step), diag(R) > 0      qr
        P' = U V^T                               polar: the nearest to P + step

    They agree to second order in the step. 'qr' and 'polar' give orthonormal columns
    whatever P is and serve both manifolds; what rounding adds in 'exp' stays, and in a
    long run has to be taken out with `orthonormalize`. Finite for all finite input;
    entries of 1e30 and 1e-30 are as good as entries of 1. Where P + step is zero, 'qr'
    and 'polar' give zero.

    Args:
      p: P, shape (..., n, k), n >= k, orthonormal columns, floating.
      step: Tangent at P, of that shape: a multiple of `tangent_part`.
      method: 'exp', 'qr' or 'polar'.

    Returns:
      P', dtype of p; computed in float32 or wider. 'exp' and 'polar' cost a singular
      value decomposition, about 6 n k^2 multiplications and additions and slow on
      accelerators; 'qr' costs 2 n k^2.

    Raises:
      ValueError: If the shapes or the name do not do.
      TypeError: If p is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> p, step = jnp.eye(3)[:, :1], jnp.array([[0.0], [-0.4], [0.0]])
      >>> for method in kernels.RETRACTIONS:
      ...     moved = kernels.retract(p, step, method)
      ...     print([f"{entry:.4f}" for entry in moved[:2, 0]])
      ['0.9211', '-0.3894']
      ['0.9285', '-0.3714']
      ['0.9285', '-0.3714']

    Source:
      A. Edelman et al., as in `tangent_part`, theorem 2.3; P.-A. Absil, R. Mahony,
      R. Sepulchre, "Optimization algorithms on matrix manifolds", 2008, section 4.1.
    """
    base, step = _checked("retract", p, step)
    if method not in RETRACTIONS:
        raise ValueError(
            f"retract: method must be one of {RETRACTIONS}, got {method!r}"
        )
    if not p.size:
        return p
    if method == "exp":
        x, largest = _unit_scale(step)
        u, s, v = _svd(x)
        angles = (s * largest[..., 0])[..., None, :]
        # Both parts have V^T on the right.
        sides = _product(base, v.mT) * jnp.cos(angles) + u * jnp.sin(angles)
        return _product(sides, v).astype(p.dtype)
    if method == "qr":
        return orthonormalize(base + step).astype(p.dtype)
    u, s, v = _svd(_unit_scale(base + step)[0])
    return _product(u * (s > 0)[..., None, :], v).astype(p.dtype)


def orthonormalize(x: jax.Array) -> jax.Array:
    """Makes columns orthonormal, the first as it is, by a QR decomposition.

        X = Q R,   diag(R) > 0

    With this sign a matrix that is orthonormal already comes back as it is.

    Args:
      x: X, shape (..., n, k), n >= k, floating.

    Returns:
      Q, shape (..., n, k), dtype of x; computed in float32 or wider. A zero matrix
      gives zero; of other columns that depend on those before, rounding makes
      something. About 2 n k^2 multiplications and additions.

    Raises:
      ValueError: If there are fewer rows than columns.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> print(kernels.orthonormalize(jnp.array([[-3.0, 0.0], [-4.0, 5.0]])).round(3))
      [[-0.6 -0.8]
       [-0.8  0.6]]

    Source:
      The decomposition is that of `jax.numpy.linalg.qr`.
    """
    wide, _ = _checked("orthonormalize", x, x)
    if not x.size:
        return x
    q, r = _symmetric.decomposed(
        lambda y: tuple(jnp.linalg.qr(y)), _unit_scale(wide)[0]
    )
    signs = jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))
    return (q * signs[..., None, :]).astype(x.dtype)


def _svd(x: jax.Array) -> tuple:
    return _symmetric.decomposed(
        lambda y: tuple(jnp.linalg.svd(y, full_matrices=False)), x
    )


def _checked(who: str, p: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both in float32 or wider, if they are matrices that are not wide."""
    if p.ndim < 2 or (p.size and p.shape[-2] < p.shape[-1]):
        raise ValueError(
            f"{who}: needs matrices (..., n, k) of at least as many rows as columns,"
            f" got {p.shape}"
        )
    if d.shape != p.shape:
        raise ValueError(f"{who}: the matrix has shape {p.shape}, the step {d.shape}")
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise TypeError(f"{who}: needs a floating dtype, got {p.dtype}")
    wide = jnp.promote_types(p.dtype, jnp.float32)
    return p.astype(wide), d.astype(wide)


def _unit_scale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divides by the largest entry, or squares of 1e30 would overflow."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0.0)
    largest = jnp.where(largest == 0, 1.0, largest)
    return x / largest, largest


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # On TPU the default would round float32 operands to bfloat16.
    return jnp.matmul(a, b, precision="highest")
