"""The largest eigenvalues of a curvature, with their directions."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import links
from optlab.probes import _krylov

ORDERS = {
    "largest": lambda values: -values,
    "smallest": lambda values: values,
    "magnitude": lambda values: -jnp.abs(values),
}


class Eigenpairs(NamedTuple):
    """What `top_eigenpairs` finds.

    Attributes:
      values: The eigenvalues, the wanted end first, shape (k,).
      vectors: Unit vectors, tree of arrays (k, ...), each placed like its parameter.
      residuals: ||A x - value x|| of each pair, measured, shape (k,). There is an
        eigenvalue within the residual of each value.
    """

    values: jax.Array
    vectors: Any
    residuals: jax.Array


def top_eigenpairs(
    product: _krylov.Map,
    params: Any,
    key: jax.Array,
    k: int = 1,
    *,
    which: str = "largest",
    steps: int | None = None,
    start: Any = None,
) -> Eigenpairs:
    """Finds eigenvalues at one end of the spectrum, and their eigenvectors.

    Lanczos with full reorthogonalisation on trees: the vectors lie where the
    parameters lie, on meshes too. Of a Hessian the first value is the sharpness, which
    `stability_threshold` is to be compared with.

    Under `jax.jit` all of it is one program; outside, each call compiles anew. With a
    product that reads from an iterator the loop runs in Python.

    Args:
      product: The symmetric map, such as `estimators.hessian_product`'s.
      params: Tree like its vectors; only shapes, dtypes and places count.
      key: Typed random key, for the first vector.
      k: Number of pairs.
      which: "largest", "smallest" or "magnitude".
      steps: Products to take, 2 k + 30 by default; at most one for each parameter.
        Memory of as many vectors. Pairs at the ends of the spectrum and apart from
        others converge first; the residuals tell.
      start: First vector, such as an eigenvector of a moment ago; None for a random
        one.

    Returns:
      The pairs. Costs k more products for the residuals.

    Raises:
      ValueError: If k, steps or which makes no sense.
      TypeError: If the key is not a typed one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators, probes
      >>> loss = lambda w: 5 * w["a"] ** 2 - w["b"] ** 2 + w["c"] ** 2 / 2
      >>> w = {name: jnp.array(1.0) for name in "abc"}
      >>> hessian = estimators.hessian_product(loss, w)
      >>> found = probes.top_eigenpairs(hessian, w, jax.random.key(0), 2)
      >>> [f"{value:.3f}" for value in found.values]
      ['10.000', '1.000']

    Source:
      Lanczos, 1950; reorthogonalisation as in Golub and Van Loan, "Matrix
      computations", section 10.3.
    """
    who = "top_eigenpairs"
    links.require_key(who, key)
    if which not in ORDERS:
        raise ValueError(f"{who}: which must be one of {list(ORDERS)}, got {which!r}")
    wanted = 2 * k + 30 if steps is None else steps
    m = _krylov.order(who, "steps", wanted, params)
    if not 1 <= k <= m:
        raise ValueError(
            f"{who}: k must be from 1 to the {m} products that are taken, got {k}"
        )
    if start is None:
        start = _krylov.normal_like(key, params)
    reduced = _krylov.tridiagonal(product, links.widen(start), m)
    values, vectors = _ritz(reduced, k, which)
    if _krylov.on_host(product):
        each = [_pick((values, vectors), i) for i in range(k)]
        residuals = _stacked([_miss(product(x), value, x) for value, x in each])
    else:
        residuals = jax.lax.map(
            lambda pair: _miss(product(pair[1]), *pair), (values, vectors)
        )
    return Eigenpairs(values, vectors, residuals)


def ritz_pair(reduced: _krylov.Tridiagonal) -> tuple[jax.Array, Any]:
    """Returns the largest eigenvalue on a Krylov space, and its vector."""
    values, vectors = _ritz(reduced, 1, "largest")
    return values[0], _pick(vectors, 0)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _ritz(reduced: _krylov.Tridiagonal, k: int, which: str) -> tuple[jax.Array, Any]:
    alpha, beta, vectors = reduced
    matrix = jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1)
    nodes, turns = jnp.linalg.eigh(matrix)
    picked = jnp.argsort(ORDERS[which](nodes))[:k]
    turns = turns[:, picked].T

    def combined(v: jax.Array) -> jax.Array:
        return jnp.tensordot(turns.astype(v.dtype), v, 1, precision="highest")

    return nodes[picked], jax.tree.map(combined, vectors)


_stacked = jax.jit(jnp.stack)


@jax.jit
def _pick(vectors: Any, i: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), vectors
    )


@jax.jit
def _miss(along: Any, value: jax.Array, x: Any) -> jax.Array:
    return links.tree_norm(jax.tree.map(lambda a, v: a - value * v, along, x))
