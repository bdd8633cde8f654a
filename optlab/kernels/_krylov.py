"""Eigenvalues of a symmetric map that is known by its products with vectors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Product = Callable[[jax.Array], jax.Array]


def power_iteration(
    product: Product, start: jax.Array, *, steps: int = 20
) -> tuple[jax.Array, jax.Array]:
    """Finds the eigenvalue of largest size of a symmetric map, and its eigenvector.

        v_{k+1} = A v_k / ||A v_k||,   value = v^T A v

    The error of the value falls like (second / first)^(2 steps).

    Args:
      product: The map A, array -> array of the same shape; linear and symmetric.
      start: First vector, any shape, floating, not zero; a random one sees every
        direction.
      steps: Number of products, plus one for the value.

    Returns:
      The value, shape (), and the vector of norm one, shaped like start; in float32 or
      wider. A map that sends the vector to zero gives the value 0 and that vector.

    Raises:
      ValueError: If steps is below 1.
      TypeError: If start is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> diagonal = jnp.array([1.0, -3.0, 2.0])
      >>> value, _ = kernels.power_iteration(lambda v: diagonal * v, jnp.ones(3))
      >>> print(f"{value:.3f}")
      -3.000

    Source:
      von Mises and Pollaczek-Geiringer, 1929.
    """
    if steps < 1:
        raise ValueError(f"power_iteration: steps must be 1 or more, got {steps}")
    first = _unit(_wide("power_iteration", start))

    def step(_: int, v: jax.Array) -> jax.Array:
        w = product(v)
        return jnp.where(jnp.any(w != 0), _unit(w), v).astype(v.dtype)

    v = jax.lax.fori_loop(0, steps, step, first)
    return _inner(v, product(v)), v


def lanczos(
    product: Product, start: jax.Array, order: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reduces a symmetric map to a tridiagonal matrix on the Krylov space of a vector.

    With V orthonormal and its first column along `start`, V^T A V is tridiagonal: alpha
    on the diagonal, beta beside it. Each new vector is made orthogonal to all before
    it, twice, or rounding would bring found eigenvalues back as copies.

        w = A v_k - beta_{k-1} v_{k-1},   alpha_k = w^T v_k,   w <- w - V V^T w
        beta_k = ||w||,   v_{k+1} = w / beta_k

    Args:
      product: The map A, array -> array of the same shape; linear and symmetric.
      start: First vector, any shape with d entries, floating, not zero.
      order: Number m of products, from 1 to d.

    Returns:
      alpha, shape (m,), beta, shape (m - 1,), and the vectors, shape (m, ...); float32
      or wider. When the space is exhausted early (beta below 10 eps of the largest
      alpha or beta), everything after it is zero, and `quadrature` gives it no weight.
      Memory m d, m products, 8 m^2 d further multiplications and additions.

    Raises:
      ValueError: If order is below 1 or above d.
      TypeError: If start is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> diagonal = jnp.array([1.0, 2.0, 5.0])
      >>> alpha, beta, _ = kernels.lanczos(lambda v: diagonal * v, jnp.ones(3), 3)
      >>> [f"{node:.3f}" for node in kernels.quadrature(alpha, beta)[0]]
      ['1.000', '2.000', '5.000']

    Source:
      Lanczos, 1950; reorthogonalisation as in Golub and Van Loan, "Matrix
      computations", section 10.3.
    """
    wide = _wide("lanczos", start)
    if not 1 <= order <= start.size:
        raise ValueError(
            f"lanczos: order must be from 1 to the {start.size} entries of start, got"
            f" {order}"
        )
    tiny = 10 * float(jnp.finfo(wide.dtype).eps)

    def step(k: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        alpha, beta, vectors = carry
        v = vectors[k]
        w = product(v).astype(v.dtype)
        alpha = alpha.at[k].set(_inner(w, v))
        for _ in range(2):
            # The two before v are among all: no recurrence of three terms is needed.
            along = jnp.tensordot(vectors, w, axes=w.ndim, precision="highest")
            w = w - jnp.tensordot(along, vectors, axes=1, precision="highest")
        length = _length(w)
        largest = jnp.maximum(jnp.max(jnp.abs(alpha)), jnp.max(beta))
        ends = length <= tiny * largest
        length = jnp.where(ends, 0.0, length)
        following = jnp.where(ends, 0.0, w / jnp.where(ends, 1.0, length))
        # The last step has no vector to follow: JAX drops what is beyond the end.
        return (
            alpha,
            beta.at[k].set(length),
            vectors.at[k + 1].set(following, mode="drop"),
        )

    vectors = jnp.zeros((order, *wide.shape), wide.dtype).at[0].set(_unit(wide))
    zeros = jnp.zeros(order, wide.dtype)
    alpha, beta, vectors = jax.lax.fori_loop(0, order, step, (zeros, zeros, vectors))
    return alpha, beta[:-1], vectors


def quadrature(alpha: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Turns the tridiagonal matrix of `lanczos` into nodes and weights.

    They are a Gauss quadrature of the spectrum as the start vector sees it: for unit v,

        v^T f(A) v = sum_i weight_i f(node_i),   exactly for polynomials f of degree
        up to 2 m - 1

    Args:
      alpha: Diagonal, shape (m,).
      beta: Beside the diagonal, shape (m - 1,).

    Returns:
      Nodes in rising order and weights, which sum to 1, shape (m,) each.

    Raises:
      ValueError: If the shapes do not belong together.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> nodes, weights = kernels.quadrature(jnp.array([2.0, 2.0]), jnp.array([1.0]))
      >>> [f"{value:.3f}" for value in (*nodes, *weights)]
      ['1.000', '3.000', '0.500', '0.500']

    Source:
      Golub and Welsch, 1969.
    """
    if alpha.ndim != 1 or beta.shape != (alpha.shape[0] - 1,):
        raise ValueError(
            f"quadrature: for alpha of shape (m,) beta has shape (m - 1,), got"
            f" {alpha.shape} and {beta.shape}"
        )
    matrix = jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1)
    nodes, vectors = jnp.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2


def _wide(who: str, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{who}: needs a floating dtype, got {x.dtype}")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(x * y)


def _length(x: jax.Array) -> jax.Array:
    """The norm; the largest entry is divided out, or squares of 1e30 would overflow."""
    largest = jnp.max(jnp.abs(x))
    largest = jnp.where(largest == 0, 1.0, largest)
    return largest * jnp.sqrt(_inner(x / largest, x / largest))


def _unit(x: jax.Array) -> jax.Array:
    length = _length(x)
    return x / jnp.where(length == 0, 1.0, length)
