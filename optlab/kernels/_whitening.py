"""Kronecker factors that whiten an array, moved towards their fixed point."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from optlab.kernels import _kronecker

WHITENING_GEOMETRIES = ("EQ", "Q0.5EQ1.5", "QEQ", "QUAD", "QEP")

# Largest rotation of one step: beyond 1/4 the two terms of its series do not suffice.
LARGEST_ROTATION = 1 / 8

Factors = tuple[jax.Array, ...]
NormBound = Callable[[jax.Array], jax.Array]  # (..., n, n) -> (...)


def row_norm_bound(x: jax.Array) -> jax.Array:
    """Bounds the spectral norm from below: two products with the largest row.

    For a symmetric or skew-symmetric A with largest row a: ||A (A a)|| / ||A a||, more
    than ||A|| / 2 on random matrices. Entries of 1e30 and 1e-30 are as good as 1.
    Cost: 4 n^2 FLOPs.

    Args:
      x: Array, shape (..., n, n), symmetric or skew-symmetric.

    Returns:
      Array, shape (...), dtype of x, float32 or wider inside; zero for zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> print(f"{kernels.row_norm_bound(x):.3f}")
      2.984

    Source:
      Li, "Preconditioned stochastic gradient descent", 2015, arXiv:1512.04202, code.
    """
    y, largest = _scaled("row_norm_bound", x)
    row = _largest_row(y)
    once = jnp.einsum("...ij,...j->...i", y, row, precision="highest")
    twice = jnp.einsum("...ij,...j->...i", y, once, precision="highest")
    return (largest * _over(_length(twice), _length(once))).astype(x.dtype)


def subspace_norm_bound(x: jax.Array, probes: jax.Array) -> jax.Array:
    """Bounds the spectral norm from below by four products with many vectors.

    The vectors are the probes, reflected to the side of the largest row and moved by
    it. Tighter than `row_norm_bound` for large matrices of low rank.
    Cost: 8 n^2 p FLOPs.

    Args:
      x: Array, shape (..., n, n), symmetric or skew-symmetric.
      probes: Array, shape (..., p, n); independent normal numbers.

    Returns:
      Array, shape (...), dtype of x, float32 or wider inside; zero for zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import kernels
      >>> probes = jax.random.normal(jax.random.key(0), (8, 2))
      >>> x = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> print(f"{kernels.subspace_norm_bound(x, probes):.3f}")
      3.000

    Source:
      Li, psgd_torch, 2025.
    """
    y, largest = _scaled("subspace_norm_bound", x)
    row = _largest_row(y)[..., None, :]
    vectors = probes.astype(y.dtype)
    side = jnp.sign(jnp.sum(row * vectors, axis=-1, keepdims=True))
    vectors = row + side * vectors
    for _ in range(2):
        vectors = jnp.matmul(vectors, y, precision="highest")
        vectors = _over(vectors, _length(vectors)[..., None])
        vectors = jnp.matmul(vectors, y, precision="highest")
    return (largest * jnp.max(_length(vectors), axis=-1)).astype(x.dtype)


def _scaled(who: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x over its largest entry, in float32 or wider, and that entry."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{who}: needs square matrices (..., n, n), got {x.shape}")
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(y), axis=(-2, -1), initial=0.0)
    return _over(y, largest[..., None, None]), largest


def _largest_row(y: jax.Array) -> jax.Array:
    at = jnp.argmax(jnp.sum(y * y, axis=-1), axis=-1)
    return jnp.take_along_axis(y, at[..., None, None], axis=-2)[..., 0, :]


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x * x, axis=-1))


def _over(a: jax.Array, b: jax.Array) -> jax.Array:
    """Divides; by zero, not at all."""
    return a / jnp.where(b == 0, 1, b)


def kronecker_solve(x: jax.Array, factors: Sequence[jax.Array]) -> jax.Array:
    """Divides an array by the transpose of a triangular factor along each axis.

        Y = X x_1 Q_1^-T x_2 Q_2^-T ...;   for a matrix, Y = Q_1^-T X Q_2^-1

    By substitution, no factor is inverted. Cost: d_1 ... d_r d_i FLOPs for each full
    factor of size d_i.

    Args:
      x: Array, shape (..., d_1, ..., d_r), floating; leading axes are batch.
      factors: One for each of the last r axes: an upper triangular matrix (..., d_i,
        d_i), whose lower part is not read, or a diagonal (..., d_i).

    Returns:
      Array of the shape and dtype of x; solved in float32 or wider. Infinite or NaN
      where a diagonal has a zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> q = jnp.array([[2.0, 1.0], [0.0, 1.0]])
      >>> print(kernels.kronecker_solve(jnp.ones((2, 1)), [q, jnp.full(1, 2.0)]))
      [[0.25]
       [0.25]]

    Source:
      Li, "Preconditioned stochastic gradient descent", 2015, arXiv:1512.04202.
    """
    order = len(factors)
    batch, sizes = x.shape[: x.ndim - order], x.shape[x.ndim - order :]
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for index, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        axis = len(batch) + index
        if factor.ndim == len(batch) + 1:
            others = [i for i in range(len(batch), x.ndim) if i != axis]
            y = y / jnp.expand_dims(factor, others)
            continue
        moved = jnp.moveaxis(y, axis, len(batch))
        columns = moved.reshape(*batch, size, math.prod(sizes) // max(size, 1))
        solved = jax.lax.linalg.triangular_solve(
            factor.astype(y.dtype),
            columns,
            left_side=True,
            lower=False,
            transpose_a=True,
        )
        y = jnp.moveaxis(solved.reshape(moved.shape), len(batch), axis)
    return y.astype(x.dtype)


def whitening_step(
    x: jax.Array,
    noise: jax.Array,
    factors: Sequence[jax.Array],
    norms: Sequence[jax.Array],
    *,
    geometry: str = "EQ",
    size: float | jax.Array = 0.1,
    norm_decay: float | jax.Array = 0.0,
    norm_bound: NormBound = row_norm_bound,
) -> tuple[Factors, Factors]:
    """Moves factors Q_i so that P = Q^T Q, their Kronecker product, whitens arrays.

    With V the noise and, for each axis i, X_(i) the array with that axis as rows:

        EQ          A = Q X, B = Q^-T V,  S = A_(i) A_(i)^T,  T = B_(i) B_(i)^T
                    Q_i <- Q_i - size triu(S - T) Q_i / l_i
        others      Y = P X,  S = Y_(i) Y_(i)^T,  T = (d_1 ... d_r / d_i) I
        Q0.5EQ1.5   Q_i <- Q_i - size (S - T) Q_i / l_i, then turned towards symmetry
        QEQ         Q_i <- Q_i - size Q_i (S - T) / l_i
        QUAD        Q_i <- E Q_i E, E = I - size (S - T) / (2 l_i), symmetric part
        QEP         S, T multiplied by Q_i and Q_i^T, then as Q0.5EQ1.5 without turn

    and l_i = max(norm_decay l_i + (1 - norm_decay) n, n) with n a bound of ||S + T||,
    or ||S|| + ||T||. At the fixed point the expectations of S and T agree, for which
    E[(PX)(PX)^T] is the identity up to a factor. The factors are first scaled to one
    largest entry, which leaves P as it is. A factor that would not be finite stays.
    Cost for m x n: about 7 mn(m + n) + m^3 + n^3 FLOPs with EQ; a solve is half of a
    product.

    Args:
      x: Array, shape (..., d_1, ..., d_r), floating; leading axes are batch.
      noise: Independent normal numbers of that shape; only EQ reads them.
      factors: One for each of the last r axes, (..., d_i, d_i) or a diagonal (...,
        d_i). For EQ upper triangular, and so they stay, exactly.
      norms: The l_i of the last step, shape (...), zero before the first.
      geometry: One of `WHITENING_GEOMETRIES`.
      size: Size of the step, in (0, 1).
      norm_decay: Decay of the norms, in [0, 1); 0 takes those of this step.
      norm_bound: Lower bound of spectral norms, (..., n, n) -> (...).

    Returns:
      The next factors and norms, of the shapes and dtypes of the old.

    Raises:
      ValueError: If the geometry is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x, v = jnp.full((1, 1), 2.0), jnp.ones((1, 1))
      >>> q, _ = kernels.whitening_step(x, v, [jnp.ones(1)] * 2, [jnp.zeros(())] * 2)
      >>> print(f"{q[0][0]:.3f}")
      0.940

    Source:
      X.-L. Li, "Preconditioned stochastic gradient descent", 2015, arXiv:1512.04202,
      and psgd_torch, 2025. Differs from the authors' code: factors are balanced at
      each step, not at one of a hundred by chance, which changes nothing but rounding.
      EQ and Q0.5EQ1.5 reproduce recorded runs of it; QEQ, QUAD and QEP are UNVERIFIED
      beyond its text.
    """
    if geometry not in WHITENING_GEOMETRIES:
        raise ValueError(
            f"whitening_step: geometry must be one of {WHITENING_GEOMETRIES}, got"
            f" {geometry!r}"
        )
    order, wide = len(factors), jnp.promote_types(x.dtype, jnp.float32)
    old = [q.astype(wide) for q in factors]
    balanced = _balanced(old, x.ndim - order)
    statistics = _triangular if geometry == "EQ" else _quadratic
    found = statistics(x.astype(wide), noise, balanced, geometry, norm_bound)
    out = []
    for q, start, norm, (error, now) in zip(
        balanced, factors, norms, found, strict=True
    ):
        last = norm.astype(wide)
        bound = jnp.maximum(norm_decay * last + (1 - norm_decay) * now, now)
        scale = jnp.expand_dims(size / jnp.where(bound > 0, bound, 1), _own(q, bound))
        new = _moved(geometry, q, scale * error, q.ndim == bound.ndim + 1, norm_bound)
        finite = jnp.all(jnp.isfinite(new), axis=_own(q, bound)) & jnp.isfinite(bound)
        keep = jnp.expand_dims(finite, _own(q, bound))
        out.append(
            (
                jnp.where(keep, new, start.astype(wide)).astype(start.dtype),
                jnp.where(finite, bound, last).astype(norm.dtype),
            )
        )
    return tuple(q for q, _ in out), tuple(norm for _, norm in out)


def _own(q: jax.Array, batch: jax.Array) -> tuple[int, ...]:
    """Returns the axes of a factor that are no batch."""
    return tuple(range(batch.ndim, q.ndim))


def _balanced(factors: Sequence[jax.Array], batch: int) -> list[jax.Array]:
    """Scales the factors to one largest entry, the geometric mean of theirs."""
    axes = [tuple(range(batch, q.ndim)) for q in factors]
    largest = [
        jnp.max(jnp.abs(q), axis=a, initial=0.0)
        for q, a in zip(factors, axes, strict=True)
    ]
    # The mean of logarithms: a product of many would overflow.
    mean = jnp.exp(sum(map(jnp.log, largest)) / len(factors))
    return [
        q * jnp.expand_dims(mean / size, a)
        for q, size, a in zip(factors, largest, axes, strict=True)
    ]


def _triangular(x, noise, factors, geometry, norm_bound):
    """Returns S - T and the bound of ||S + T|| for each axis of EQ."""
    del geometry
    order = len(factors)
    a = _kronecker.kronecker_apply(x, factors)
    b = kronecker_solve(noise.astype(x.dtype), factors)
    found = []
    for axis, q in enumerate(factors):
        diagonal = q.ndim == x.ndim - order + 1
        s, t = (
            _kronecker.axis_product(y, axis, order, diagonal=diagonal) for y in (a, b)
        )
        norm = jnp.max(s + t, axis=-1) if diagonal else norm_bound(s + t)
        found.append((s - t, norm))
    return found


def _quadratic(x, noise, factors, geometry, norm_bound):
    """Returns S - T and the bound of its norm for each axis of the other geometries."""
    del noise
    order = len(factors)
    a = _kronecker.kronecker_apply(x, factors)
    y = _kronecker.kronecker_apply(a, factors, transpose=True)
    found = []
    for axis, q in enumerate(factors):
        diagonal = q.ndim == x.ndim - order + 1
        count = math.prod(x.shape[x.ndim - order :]) / x.shape[axis - order]
        t = jnp.ones_like(q) if diagonal else jnp.eye(q.shape[-1], dtype=q.dtype)
        own = y
        if geometry == "QEP":
            alone = [q if i == axis else None for i in range(order)]
            own = _kronecker.kronecker_apply(y, alone)
            t = q * q if diagonal else jnp.matmul(q, q.mT, precision="highest")
        s, t = _kronecker.axis_product(own, axis, order, diagonal=diagonal), count * t
        whole, rest = (s + t, 0.0) if geometry == "QEP" else (s, count)
        norm = jnp.max(whole, axis=-1) if diagonal else norm_bound(whole)
        found.append((s - t, norm + rest))
    return found


def _moved(geometry, q, error, diagonal, norm_bound):
    """Returns the factor after a step along the scaled error."""
    if diagonal:
        return q * (1 - error / 2) ** 2 if geometry == "QUAD" else q - error * q

    def times(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision="highest")

    if geometry == "EQ":
        return q - times(jnp.triu(error), q)
    if geometry == "QEQ":
        return q - times(q, error)
    if geometry == "QUAD":
        half = q - times(error / 2, q)
        half = half - times(half, error / 2)
        return (half + half.mT) / 2
    moved = q - times(error, q)
    return moved if geometry == "QEP" else _towards_symmetry(moved, norm_bound)


def _towards_symmetry(q: jax.Array, norm_bound: NormBound) -> jax.Array:
    """Turns Q by exp(a R), R = Q^T - Q over its norm, as far as the trace rises.

    P = Q^T Q does not change, but for the series' third term.
    """

    def trace(x: jax.Array) -> jax.Array:
        return jnp.trace(x, axis1=-2, axis2=-1)[..., None, None]

    r = q.mT - q
    r = _over(r, norm_bound(r)[..., None, None])
    rq = jnp.matmul(r, q, precision="highest")
    rrq = jnp.matmul(r, rq, precision="highest")
    curved = trace(rrq) < 0
    best = -trace(rq) / jnp.where(curved, trace(rrq), -1)
    a = jnp.where(curved, jnp.minimum(best, LARGEST_ROTATION), LARGEST_ROTATION)
    return q + a * (rq + a / 2 * rrq)
