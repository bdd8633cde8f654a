"""What aggregators share: the stack of workers, their distances, means of some."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from optlab import links, trees


def number_of(who: str, stacked: Any) -> int:
    """Returns n, the first size of every leaf, or names the leaf that has another."""
    leaves = jax.tree_util.tree_leaves_with_path(stacked)
    if not leaves:
        raise ValueError(f"{who}: the tree of workers has no leaves")
    require_floats(who, stacked)
    first = jnp.shape(leaves[0][1])[:1]
    for path, x in leaves:
        if jnp.shape(x)[:1] != first or first in ((), (0,)):
            raise ValueError(
                f"{who}: leaf '{trees.path_string(path)}' has shape {jnp.shape(x)};"
                " the first axis of every leaf counts the same workers"
            )
    return first[0]


def require_faulty(who: str, faulty: int, n: int, least: int) -> None:
    """Raises unless `faulty` is a count that n workers can stand.

    Args:
      who: Name of the aggregator.
      faulty: The argument f.
      n: Number of workers.
      least: Honest workers needed beside 2 f.
    """
    require_integer(who, "faulty", faulty)
    if n < least:
        raise ValueError(f"{who}: needs {least} workers or more, got {n}")
    if not 0 <= faulty or n < 2 * faulty + least:
        raise ValueError(
            f"{who}: with {n} workers faulty must be 0 or more and at most"
            f" {(n - least) // 2}, got {faulty}; it needs"
            f" {least} + 2 faulty of them"
        )


def require_integer(who: str, name: str, value: Any) -> None:
    """Raises unless an argument is an integer."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{who}: {name} must be an integer, got {value!r}")


def require_floats(who: str, tree: Any) -> None:
    """Raises unless the leaves of a tree are of floats."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(
                f"{who}: leaf '{trees.path_string(path)}' is of {jnp.result_type(x)};"
                " workers send floats"
            )


def on_any_mesh(function: Callable[..., Any], *args: Any, out: Any) -> Any:
    """Lets the compiler place the inside of a function, on Explicit axes too.

    Sorting across workers, and products over all entries, have no placement of their
    own to name.

    Args:
      function: From trees to a tree of arrays.
      *args: Its arguments.
      out: Specs of what it returns.
    """
    # As JAX has them: a float64 of NumPy is float32 here, unless JAX is told otherwise.
    args = jax.tree.map(jnp.asarray, args)
    if not any(any(_spec(x)) for x in jax.tree.leaves(args)):
        return function(*args)
    return jax.sharding.auto_axes(function, out_sharding=out)(*args)


def one_of(stacked: Any) -> Any:
    """Returns the specs of one worker's tree."""
    return jax.tree.map(lambda x: PartitionSpec(*_spec(x)[1:]), stacked)


def all_of(stacked: Any) -> Any:
    """Returns the specs of the tree of all workers."""
    return jax.tree.map(lambda x: PartitionSpec(*_spec(x)), stacked)


def distances_to(pivot: Any, stacked: Any) -> jax.Array:
    """Measures how far each worker is from one point, over the whole tree.

    Each in units of its largest entry, so that no square overflows or is lost.

    Returns:
      Distances (n,), infinite for what is not finite.
    """
    apart = jax.tree.map(jnp.subtract, links.widen(stacked), links.widen(pivot))
    largest = _largest(apart)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = [
        jnp.sum(jnp.square(x / _along(unit, x)), tuple(range(1, x.ndim)))
        for x in jax.tree.leaves(apart)
    ]
    return jnp.where(jnp.isfinite(largest), unit * jnp.sqrt(sum(squares)), jnp.inf)


def squared_distances(stacked: Any) -> jax.Array:
    """Measures how far any two workers are from each other, over the whole tree.

    By one product of the stack with itself, |x|^2 + |y|^2 - 2 <x, y>. Around zero that
    would lose the distances of workers whose parameters are long and nearly the same;
    around their median, which no minority moves, only far workers lose anything.

    Returns:
      Squares (n, n), in units of the median worker's largest entry; infinite for what
      is not finite or far beyond.
    """
    wide = links.widen(stacked)
    apart = jax.tree.map(lambda x: x - middle(x), wide)
    largest = _largest(apart)
    unit = jnp.sort(largest)[(largest.shape[0] - 1) // 2]
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)

    def products(x: jax.Array) -> jax.Array:
        axes = tuple(range(1, x.ndim))
        pairs = ((axes, axes), ((), ()))
        return jax.lax.dot_general(x / unit, x / unit, pairs, precision="highest")

    gram = sum(products(x) for x in jax.tree.leaves(apart))
    lengths = jnp.diagonal(gram)
    squares = lengths[:, None] + lengths[None, :] - 2 * gram
    return jnp.where(jnp.isfinite(squares), jnp.maximum(squares, 0), jnp.inf)


def middle(x: jax.Array) -> jax.Array:
    """Returns the median over the first axis; NaN counts as above everything."""
    n = x.shape[0]
    ranked = jnp.sort(x, 0)
    return 0.5 * ranked[(n - 1) // 2] + 0.5 * ranked[n // 2]


def weights_of_lowest(scores: jax.Array, k: int) -> jax.Array:
    """Returns equal weights for the k lowest of each row; the first among equals.

    Args:
      scores: Scores (..., n).
      k: How many.

    Returns:
      Weights of the same shape: 1/k, 0, or NaN for a chosen one without a finite score.
    """
    ranks = jnp.argsort(jnp.argsort(scores, axis=-1, stable=True), axis=-1)
    return jnp.where(ranks < k, jnp.where(jnp.isfinite(scores), 1 / k, jnp.nan), 0)


def weighted(stacked: Any, weights: jax.Array) -> Any:
    """Returns means (n,) @ (n, ...) or (k, n) @ (n, ...), in the stack's dtypes."""

    def mean(x: jax.Array) -> jax.Array:
        wide = links.widen(x)
        # Who is not finite has no weight, or that is NaN; zero times NaN must be zero.
        clean = jnp.where(jnp.isfinite(wide), wide, 0)
        w = weights.astype(wide.dtype)
        return jnp.tensordot(w, clean, axes=1, precision="highest").astype(x.dtype)

    return jax.tree.map(mean, stacked)


def _largest(tree: Any) -> jax.Array:
    """Returns the largest entry of each worker, NaN where it has one."""
    sizes = [
        jnp.max(jnp.abs(x), tuple(range(1, x.ndim)), initial=0.0)
        for x in jax.tree.leaves(tree)
    ]
    return jnp.max(jnp.stack(sizes), 0)


def _along(x: jax.Array, like: jax.Array) -> jax.Array:
    return x.reshape(-1, *(1,) * (like.ndim - 1))


def _spec(x: Any) -> Any:
    return jax.typeof(jnp.asarray(x)).sharding.spec
