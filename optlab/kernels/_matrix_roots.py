"""Inverse p-th roots of symmetric positive semidefinite matrices."""

import functools

import jax
import jax.numpy as jnp

from optlab.kernels import _symmetric

# Coupled Newton: iterations of one try, tries with ten times the ridge, the error
# above which a try counts as failed, and the growth of the error that ends a try.
ITERATIONS, TRIES, FAILED, GROWTH = 100, 6, 0.05, 1.2


def inverse_root(
    x: jax.Array,
    p: float = 2.0,
    *,
    ridge: float | jax.Array = 0.0,
    relative: bool = False,
) -> jax.Array:
    """Computes (X + ridge I)^(-1/p) by an eigendecomposition.

        X = V diag(e) V^T,   Y = V diag(max(e, n u e_max) + ridge)^(-1/p) V^T

    with u the unit of rounding: an eigenvalue that rounding cannot tell from zero is
    taken to be at the limit, so Y is finite for matrices of any rank. The largest entry
    is divided out first: entries of 1e30 and 1e-30 are as good as entries of 1. A zero
    matrix without a ridge gives zero. Other matrices of a batch do not see one that
    has an infinite or undefined entry; its own result is NaN.
    Cost: about 9 n^3 FLOPs for the eigendecomposition, 2 n^3 for the product.

    Args:
      x: Array, shape (..., n, n), symmetric positive semidefinite, floating.
      p: Order of the root, any positive number.
      ridge: Added to the eigenvalues, in units of x; may be traced.
      relative: Whether the ridge is a multiple of the largest eigenvalue instead.

    Returns:
      Array, shape (..., n, n), dtype of x; computed in float32 or wider.

    Raises:
      ValueError: If x is not a stack of square matrices or p is not positive.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> print(kernels.inverse_root(jnp.diag(jnp.array([1.0, 16.0])), 4).round(4))
      [[1.  0. ]
       [0.  0.5]]

    Source:
      Gupta, Koren, Singer, "Shampoo", 2018, arXiv:1802.09568, for p = 4. Differs from
      the code of its successors, which iterate: see `newton_inverse_root`.
    """
    y, largest = _scaled("inverse_root", x, p)
    if x.size == 0:
        return x
    ridge = ridge if relative else ridge / largest[..., 0]
    values, vectors = _symmetric.eigh(y)
    top = values[..., -1:]
    limit = x.shape[-1] * jnp.finfo(y.dtype).eps * top
    values = jnp.maximum(values, limit) + (ridge * top if relative else ridge)
    powers = jnp.where(values > 0, values, jnp.inf) ** (-1 / p)
    powers = jnp.where(jnp.isnan(values), values, powers)
    root = jnp.einsum(
        "...ij,...j,...kj->...ik", vectors, powers, vectors, precision="highest"
    )
    return (root * largest ** (-1 / p)).astype(x.dtype)


def newton_inverse_root(
    x: jax.Array,
    p: int = 2,
    *,
    ridge: float | jax.Array = 0.0,
    relative: bool = False,
    max_error: float = 0.1,
) -> jax.Array:
    """Computes (X + ridge I)^(-1/p) by coupled Newton iteration: products alone.

    For A = X + ridge I, from M = z A, H = z^(1/p) I, z = (1 + p) / (2 ||A||_F),

        T = ((1 + p) I - M) / p,   H <- H T,   M <- T^p M

    until M is the identity, or its error grows by a fifth; then the H before counts.
    A try that leaves an error above 0.05 is repeated with ten times the ridge, at
    most six times in all, from the limit of rounding if there is no ridge.
    Cost: 2 n^3 FLOPs for each of 3 products (p = 1), 4 (p = 2), 5 (p = 4) an iteration;
    8, 13, 18 iterations for condition numbers of 1e2, 1e4, 1e6 at p = 4. A batch runs
    until its slowest matrix is done.

    Args:
      x: Array, shape (..., n, n), symmetric positive semidefinite, floating.
      p: Order of the root, a positive integer.
      ridge: Added to the diagonal, in units of x; may be traced.
      relative: Whether the ridge is a multiple of the largest eigenvalue instead, found
        by 20 power iterations.
      max_error: Largest error, max |M - I|, of a result that counts.

    Returns:
      Array, shape (..., n, n), dtype of x, computed in float32 or wider. NaN for a
      matrix whose error stays above `max_error` or that is not finite: keep the root
      that you have. A zero matrix without a ridge gives zero.

    Raises:
      ValueError: As `inverse_root`; if p is no integer.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.array([[5.0, 4.0], [4.0, 5.0]])
      >>> root = kernels.newton_inverse_root(x, 2)
      >>> print(jnp.abs(root @ root @ x).round(3))
      [[1. 0.]
       [0. 1.]]

    Source:
      Guo, Higham, "A Schur-Newton method for the matrix p-th root and its inverse",
      2006; stopping rules and ridge as in google-research/precondition. Differs from
      that code: the rules above run in float32 too; a failed root is NaN here, there
      a number beside it.
    """
    if p != int(p):
        raise ValueError(
            f"newton_inverse_root: p must be an integer, got {p}; inverse_root takes"
            " any positive p"
        )
    y, largest = _scaled("newton_inverse_root", x, p)
    if x.size == 0:
        return x
    n = x.shape[-1]
    flat, scale = y.reshape(-1, n, n), largest.reshape(-1)
    add = jnp.broadcast_to(jnp.asarray(ridge, y.dtype), scale.shape)
    top = jax.vmap(_largest_eigenvalue)(flat)
    add = add * top if relative else add / scale
    root, error = jax.vmap(functools.partial(_with_retries, p=int(p)))(flat, add, top)
    root = jnp.where(error[:, None, None] <= max_error, root, jnp.nan)
    root = root.reshape(x.shape) * largest ** (-1 / p)
    zero = ~jnp.any(y, axis=(-2, -1), keepdims=True) & (add.reshape(largest.shape) == 0)
    return jnp.where(zero, 0, root).astype(x.dtype)


def _scaled(who: str, x: jax.Array, p: float) -> tuple[jax.Array, jax.Array]:
    if not p > 0:
        raise ValueError(f"{who}: p must be positive, got {p}")
    return _symmetric.scaled(who, x)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def _largest_eigenvalue(x: jax.Array) -> jax.Array:
    """Twenty power iterations from the column of the largest diagonal entry.

    The quotient starts at that entry, a share 1/n of the largest eigenvalue at least.
    """

    def body(_, v):
        v = _product(x, v)
        norm = jnp.linalg.norm(v)
        return v / jnp.where(norm == 0, 1, norm)

    v = jax.lax.fori_loop(0, 20, body, x[:, jnp.argmax(jnp.diagonal(x))])
    return jnp.vdot(v, _product(x, v), precision="highest")


def _with_retries(x: jax.Array, ridge: jax.Array, top: jax.Array, *, p: int):
    """Returns root and error of one matrix, with ten times the ridge at each try."""
    limit = x.shape[-1] * jnp.finfo(x.dtype).eps * top
    eye = jnp.eye(x.shape[-1], dtype=x.dtype)

    def again(carry):
        attempt, _, error, _ = carry
        # `error > FAILED` is false for NaN, which no ridge can cure.
        return (attempt < TRIES) & (error > FAILED)

    def body(carry):
        attempt, _, _, ridge = carry
        root, error = _iterate(x + ridge * eye, p)
        return attempt + 1, root, error, 10 * jnp.maximum(ridge, limit / 10)

    # Shaped like x, so that on a mesh the loop starts with the type it ends with.
    start = (jnp.int32(0), jnp.zeros_like(x), jnp.full_like(top, jnp.inf), ridge)
    _, root, error, _ = jax.lax.while_loop(again, body, start)
    return root, error


def _iterate(a: jax.Array, p: int) -> tuple[jax.Array, jax.Array]:
    """Runs the iteration on one matrix; returns the root and max |M - I|."""
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    tolerance = 4 * jnp.finfo(a.dtype).eps
    z = (1 + p) / (2 * jnp.linalg.norm(a))
    m, h = z * a, z ** (1 / p) * eye

    def unfinished(carry):
        step, _, _, error, grown = carry
        return (step < ITERATIONS) & (error > tolerance) & ~grown

    def body(carry):
        step, m, h, error, _ = carry
        t = ((1 + p) * eye - m) / p
        next_m, next_h = _product(_power(t, p), m), _product(h, t)
        next_error = jnp.max(jnp.abs(next_m - eye))
        # Near the end rounding alone is left: what does not shrink is as good as done.
        worse = ~(next_error < error)
        grown = (next_error > GROWTH * error) | (worse & (error < FAILED))
        keep = functools.partial(jnp.where, grown & worse)
        return (
            step + 1,
            keep(m, next_m),
            keep(h, next_h),
            keep(error, next_error),
            grown,
        )

    error = jnp.max(jnp.abs(m - eye))
    start = (jnp.int32(0), m, h, error, error != error)
    _, _, h, error, _ = jax.lax.while_loop(unfinished, body, start)
    return h, error


def _power(t: jax.Array, p: int) -> jax.Array:
    """Multiplies t by itself, by repeated squaring."""
    power, result = t, None
    while p:
        if p % 2:
            result = power if result is None else _product(result, power)
        p //= 2
        if p:
            power = _product(power, power)
    return t if result is None else result
