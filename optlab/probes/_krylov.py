"""Lanczos on trees: vectors lie where the parameters lie, and nothing is flattened."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import estimators, links

Map = Callable[[Any], Any]


class Tridiagonal(NamedTuple):
    """A symmetric map on a Krylov space.

    Attributes:
      alpha: The diagonal, shape (m,).
      beta: Beside the diagonal, shape (m - 1,).
      vectors: The orthonormal basis, tree of arrays (m, ...).
    """

    alpha: jax.Array
    beta: jax.Array
    vectors: Any


class _Walk(NamedTuple):
    """Where the process is: what is known, and the vector that comes next."""

    alpha: jax.Array
    beta: jax.Array
    vectors: Any
    following: Any


def on_host(product: Map) -> bool:
    """Tells whether a map cannot be traced, so that loops around it run in Python."""
    return getattr(product, "on_host", False)


def order(who: str, name: str, steps: int, params: Any) -> int:
    """Returns how many products to take, no more than there are parameters."""
    size = sum(x.size for x in jax.tree.leaves(params))
    if steps < 1 or size < 1:
        raise ValueError(
            f"{who}: {name} must be 1 or more, and so must the number of parameters;"
            f" got {steps} and {size}"
        )
    return min(steps, size)


normal_like = jax.jit(estimators.direction_like)
signs_like = jax.jit(estimators.rademacher_like)


@jax.jit
def unit(tree: Any) -> Any:
    """Divides a tree by its norm; zero stays zero."""
    norm = links.tree_norm(tree)
    length = jnp.where(norm == 0, 1, norm)
    return jax.tree.map(lambda x: (x / length).astype(x.dtype), tree)


def tridiagonal(product: Map, start: Any, steps: int) -> Tridiagonal:
    """Takes Lanczos steps with full reorthogonalisation, each twice.

    Where the space is exhausted, as by an eigenvalue that occurs twice, it goes on with
    a new vector at right angles to all before and a beta of 0. So the steps, up to
    the number of parameters, are never in vain, and a quadrature gives what comes after
    no weight.

    Args:
      product: The map.
      start: First vector, float32 or wider.
      steps: Number of products, at most the number of entries of a vector.

    Returns:
      The reduced map.
    """
    if on_host(product):
        walk = _begun(start, steps)
        for k in range(steps):
            along = product(walk.following)
            walk = jax.block_until_ready(_extended_compiled(k, walk, along))
    else:
        walk = jax.lax.fori_loop(
            0,
            steps,
            lambda k, walk: _extended(k, walk, product(walk.following)),
            _begun(start, steps),
        )
    return Tridiagonal(walk.alpha, walk.beta[:-1], walk.vectors)


@functools.partial(jax.jit, static_argnums=1)
def _begun(start: Any, steps: int) -> _Walk:
    first = unit(start)
    # In this form the zeros lie where the vector lies.
    room = jax.tree.map(
        lambda x: jnp.broadcast_to(jnp.zeros_like(x)[None], (steps, *x.shape)), first
    )
    zeros = jnp.zeros(steps, float)
    return _Walk(zeros, zeros, room, first)


def _extended(k: Any, walk: _Walk, along: Any) -> _Walk:
    """Adds the k-th vector, whose product with the map is known."""
    v = walk.following
    vectors = jax.tree.map(
        lambda room, x: jax.lax.dynamic_update_index_in_dim(room, x, k, 0),
        walk.vectors,
        v,
    )
    alpha = walk.alpha.at[k].set(links.inner_product(along, v))
    left = _without(_without(along, vectors), vectors)
    length = links.tree_norm(left)
    eps = jnp.finfo(jnp.result_type(*jax.tree.leaves(v))).eps
    largest = jnp.maximum(jnp.max(jnp.abs(alpha)), jnp.max(walk.beta))
    ends = length <= 10 * eps * largest

    def anew() -> Any:
        return unit(_without(_without(_scattered(k, v), vectors), vectors))

    following = jax.lax.cond(ends, anew, lambda: unit(left))
    beta = walk.beta.at[k].set(jnp.where(ends, 0, length))
    return _Walk(alpha, beta, vectors, following)


_extended_compiled = jax.jit(_extended)


def _scattered(k: Any, like: Any) -> Any:
    """Fills a tree with numbers from -1 to 1 without order, others for each k.

    They need no quality but to be along every direction a little, and random bits take
    the compiler half a second for each leaf.
    """

    def fill(i: int, x: jax.Array) -> jax.Array:
        place = jax.typeof(x).sharding
        cut = place if any(place.spec) else None
        bits = jnp.uint32(i + 1) * jnp.uint32(0x9E3779B9) + jnp.asarray(k, jnp.uint32)
        for axis in range(x.ndim):
            at = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis, out_sharding=cut)
            bits = (bits + at) * jnp.uint32(0x85EBCA6B)
            bits = bits ^ (bits >> 15)
        bits = bits * jnp.uint32(0xC2B2AE35)
        return (bits ^ (bits >> 16)).astype(x.dtype) / 2.0**31 - 1

    leaves, tree = jax.tree.flatten(like)
    return tree.unflatten(fill(i, x) for i, x in enumerate(leaves))


def _without(w: Any, vectors: Any) -> Any:
    """Takes from a vector what lies along the vectors so far."""
    # Sums of products, not tensor products: a contraction over an axis that is cut
    # along the devices is refused on Explicit axes.
    parts = jax.tree.map(
        lambda v, x: jnp.sum(v * x[None], tuple(range(1, v.ndim))), vectors, w
    )
    along = sum(jax.tree.leaves(parts))

    def less(v: jax.Array, x: jax.Array) -> jax.Array:
        weights = jnp.reshape(along, (-1, *[1] * x.ndim)).astype(x.dtype)
        return x - jnp.sum(weights * v, 0)

    return jax.tree.map(less, vectors, w)
