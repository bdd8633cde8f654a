"""Vectors times the inverse of a symmetric map, and what is left unsolved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import links

METHODS = ("cg", "neumann")


class InverseProduct(NamedTuple):
    """What `inverse_product` gives.

    Attributes:
      value: The solution q, shaped like the vector v, float32 or wider.
      residual: What is left, ||v - A q|| / ||v||, shape (): 0 when solved, 1 for
        q = 0, above 1 for a series that diverges. Where v is zero, ||A q||.
      steps: Products that were taken, shape (), int32.
    """

    value: Any
    residual: jax.Array
    steps: jax.Array


def inverse_product(
    product: Callable[..., Any],
    vector: Any,
    *,
    method: str = "cg",
    steps: int = 100,
    tol: float | jax.Array = 1e-5,
    rate: float | jax.Array | None = None,
    damping: float | jax.Array = 0.0,
    start: Any = None,
    batches: Any = None,
) -> InverseProduct:
    """Solves A q = v for a symmetric positive map that is known by its products.

        'cg'        conjugate gradients, until ||v - A q|| <= tol ||v||
        'neumann'   q <- q + a (v - A q): `steps` times, from zero the sum
                    a sum_{k < steps} (I - a A)^k v

    Conjugate gradients need about sqrt(condition) products, and the same map in each.
    The series needs about condition times more, but takes another batch in every step
    and goes on from where the last call ended: with a few steps in each call, as the
    parameters move, it is stochastic descent on q^T A q / 2 - v^T q.

    Args:
      product: The map A: from trees like the vector to trees like them; with batches,
        from a tree and a batch. Traceable, as of `hessian_product`.
      vector: Tree of arrays, v.
      method: 'cg' or 'neumann'.
      steps: Largest number of products, or the length of the series.
      tol: Where 'cg' stops. In float32 little below 1e-6 can be reached.
      rate: The a of 'neumann', below 2 / (largest eigenvalue of A + damping).
      damping: Number that is added to all eigenvalues of A.
      start: Tree like the vector, the first q; None for zero. The steps correct
        whatever it is.
      batches: Tree of arrays (steps, ...), a batch for each step of 'neumann'.

    Returns:
      Solution and residual. Look at the residual: nothing else tells that the steps
      were too few, that the rate was too large, or that a negative eigenvalue stopped
      'cg', which ends at the first direction along which there is no minimum. That of
      'cg' is measured by one more product; that of 'neumann' is of the point before
      the last step, on its batch, and costs none.

    Raises:
      ValueError: If method is another word, steps are below 1, a number is out of
        range, or an argument is missing or of the other method.
      TypeError: If a leaf of the vector is not of floats.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> def product(v):
      ...     return jnp.array([1.0, 4.0]) * v
      >>> found = estimators.inverse_product(product, jnp.ones(2))
      >>> print(jnp.round(found.value, 3), found.steps)
      [1.   0.25] 2
      >>> found = estimators.inverse_product(
      ...     product, jnp.ones(2), method="neumann", steps=20, rate=0.25)
      >>> print(f"{found.residual:.4f}")
      0.0030

    Source:
      Hestenes and Stiefel, "Methods of conjugate gradients for solving linear
      systems", 1952. Not `jax.scipy.sparse.linalg.cg`, which flattens leaves (an
      Explicit mesh refuses that) and does not tell how far it came.
    """
    require_method("inverse_product", method, steps, tol, rate, damping, batches)
    _require_tree("vector", vector)
    v = links.widen(jax.tree.map(jnp.asarray, vector))
    norm = links.tree_norm(v)
    # Of length one: the squares of very long and very short vectors leave float32.
    unit = jnp.where(norm > 0, norm, 1)
    v = _scaled(v, 1 / unit)
    if start is None:
        q = jax.tree.map(jnp.zeros_like, v)
    else:
        _require_tree("start", start, v)
        q = _scaled(links.widen(jax.tree.map(jnp.asarray, start)), 1 / unit)

    def damped(p: Any, *batch: Any) -> Any:
        return _add(product(p, *batch), damping, p)

    if method == "cg":
        found = _conjugate_gradients(damped, v, q, steps, tol)
    else:
        found = _neumann(damped, v, q, steps, rate, batches)
    return found._replace(value=_scaled(found.value, unit))


class _Descent(NamedTuple):
    """Point q, residual r, direction p, r^T r, products, and whether p has no end."""

    q: Any
    r: Any
    p: Any
    squared: jax.Array
    steps: jax.Array
    stuck: jax.Array


def _conjugate_gradients(
    product: Any, v: Any, q: Any, steps: int, tol: Any
) -> InverseProduct:
    def residual(q: Any) -> Any:
        return jax.tree.map(jnp.subtract, v, product(q))

    def unsolved(now: _Descent) -> jax.Array:
        return (now.squared > tol**2) & (now.steps < steps) & ~now.stuck

    def step(now: _Descent) -> _Descent:
        bent = product(now.p)
        curvature = links.inner_product(now.p, bent)
        stuck = ~(curvature > 0)
        length = jnp.where(stuck, 0, now.squared / jnp.where(stuck, 1, curvature))
        q, r = _add(now.q, length, now.p), _add(now.r, -length, bent)
        squared = links.inner_product(r, r)
        p = _add(r, squared / now.squared, now.p)
        return _Descent(q, r, p, squared, now.steps + 1, stuck)

    r = residual(q)
    none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    first = _Descent(q, r, r, links.inner_product(r, r), none, no)
    last = jax.lax.while_loop(unsolved, step, first)
    # The residual of the recursion goes on falling when that of q no longer does.
    return InverseProduct(last.q, links.tree_norm(residual(last.q)), last.steps)


def _neumann(
    product: Any, v: Any, q: Any, steps: int, rate: Any, batches: Any
) -> InverseProduct:
    def step(q: Any, batch: Any) -> tuple[Any, jax.Array]:
        bent = product(q) if batches is None else product(q, batch)
        r = jax.tree.map(jnp.subtract, v, bent)
        return _add(q, rate, r), links.tree_norm(r)

    q, residuals = jax.lax.scan(step, q, batches, length=steps)
    return InverseProduct(q, residuals[-1], jnp.full((), steps, jnp.int32))


def _add(x: Any, factor: Any, y: Any) -> Any:
    return jax.tree.map(lambda x, y: (x + factor * y).astype(y.dtype), x, y)


def _scaled(tree: Any, factor: Any) -> Any:
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def _require_tree(name: str, tree: Any, like: Any = None) -> None:
    who = f"inverse_product: {name}"
    links.require_felt(who, jax.tree.map(jnp.asarray, tree), 1)
    if like is None:
        return
    got, wanted = (jax.tree.map(jnp.shape, t) for t in (tree, like))
    if got != wanted:
        raise ValueError(f"{who} must have the shapes of vector, {wanted}, got {got}")


def require_method(
    who: str,
    method: str,
    steps: int,
    tol: Any,
    rate: Any,
    damping: Any,
    batches: Any,
) -> None:
    """Raises unless a method is known and has what it needs, and nothing else."""
    if method not in METHODS:
        raise ValueError(f"{who}: method must be one of {METHODS}, got {method!r}")
    if steps < 1:
        raise ValueError(f"{who}: steps must be 1 or more, got {steps}")
    links.require_nonnegative(who, tol=tol, damping=damping)
    if method == "cg":
        for name, given in (("rate", rate), ("batches", batches)):
            if given is not None:
                raise ValueError(
                    f"{who}: {name} is for method='neumann'; conjugate gradients find"
                    " their own steps along one map"
                )
        return
    if rate is None:
        raise ValueError(
            f"{who}: method='neumann' needs a rate, below 2 / (largest eigenvalue +"
            " damping)"
        )
    links.require_positive(who, rate=rate)
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(batches)}
    if lengths - {(steps,)}:
        raise ValueError(
            f"{who}: batches must have one for each of the {steps} steps in front, got"
            f" leaves with {sorted(lengths)} in front"
        )
