"""Sketches: a tree sent as a few numbers, and the way back on the other side."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from optlab import links
from optlab.aggregation import _workers

KINDS = ("count", "gaussian", "srht")


def sketch(key: jax.Array, tree: Any, size: int, kind: str = "count") -> jax.Array:
    """Multiplies a tree, as one long vector of d entries, by a short random matrix.

        z = R x,   R (s, d) drawn from the key with E[R^T R] = I

    All workers draw the same R from one key, fresh each round. Sketches add up: that of
    a sum is the sum of the sketches, so workers exchange s numbers and not d.
    `desketch` goes back, right on average and only on average: with a Gaussian R

        E ||R^T R x||^2 = (d + s + 1) / s ||x||^2

    and the others are much the same, so learning rates shrink by about s / (s + d).
    What is lost in a round is not made up for in the next. A sketch by itself keeps
    nothing private: who knows the key learns much of x.

    - 'count': each entry has a sign and is added to one of the s numbers. Work and
      memory d.
    - 'gaussian': entries N(0, 1/s). Work s d; R is drawn row by row, memory d. On a
      mesh that cuts the tree each row is a sum over the devices.
    - 'srht': random signs, a Hadamard transform, s of its outputs. Work d log d; the
      tree is brought together, on a mesh too, and filled up to a power of two. If that
      is s, R is orthogonal, and nothing is lost.

    Args:
      key: Typed random key, the same on all workers, a new one each round.
      tree: Tree x of arrays.
      size: s, 1 or more; for 'srht' at most d, filled up to a power of two.
      kind: 'count', 'gaussian' or 'srht'.

    Returns:
      The sketch z, shape (s,), float32 or wider. It does not depend on the placement.

    Raises:
      TypeError: If the key is not a typed one, size is no integer, or a leaf holds no
        floats.
      ValueError: If size is out of range, the kind unknown, or the tree without leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import aggregation
      >>> key, x = jax.random.key(0), jnp.array([3.0, 4.0])
      >>> z = aggregation.sketch(key, x, 2, "srht")
      >>> back = aggregation.desketch(key, z, x, "srht")
      >>> [f"{x:.3f}" for x in (jnp.linalg.norm(z), *back)]
      ['5.000', '3.000', '4.000']

    Source:
      Song et al., "Sketching for first order method", 2022, arXiv:2210.08371.
      UNVERIFIED: the abstract was read; the three matrices are the standard ones. Of
      its rounds and its noise nothing is here.
    """
    _require(key, tree, size, kind, "sketch")
    forth = {"count": _count, "gaussian": _gaussian, "srht": _srht}[kind]

    def run(tree: Any) -> jax.Array:
        leaves = jax.tree.leaves(links.widen(tree))
        return forth(key, leaves, int(size), jnp.result_type(*leaves))

    return _workers.on_any_mesh(run, tree, out=PartitionSpec())


def desketch(key: jax.Array, z: jax.Array, like: Any, kind: str = "count") -> Any:
    """Goes back from a sketch, or a sum of sketches, to a tree: R^T z.

    The mean over keys of `desketch(key, sketch(key, x, ...), x, ...)` is x.

    Args:
      key: The key of the sketch.
      z: Sketch, shape (s,).
      like: Tree of arrays, whose shapes, dtypes and placement the result has.
      kind: The kind of the sketch.

    Returns:
      Tree like `like`.

    Raises:
      TypeError: If the key is not a typed one, or a leaf holds no floats.
      ValueError: If z is no sketch of such a tree, or the kind unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import aggregation
      >>> x = jnp.arange(4.0)
      >>> def there_and_back(key):
      ...     z = aggregation.sketch(key, x, 2)
      ...     return aggregation.desketch(key, z, x)
      >>> keys = jax.random.split(jax.random.key(0), 10_000)
      >>> print(jnp.round(jax.vmap(there_and_back)(keys).mean(0), 1))
      [0. 1. 2. 3.]

    Source:
      See `sketch`.
    """
    if jnp.ndim(z) != 1:
        raise ValueError(f"desketch: z must have the shape (s,), got {jnp.shape(z)}")
    _require(key, like, jnp.shape(z)[0], kind, "desketch")
    back = {"count": _count_back, "gaussian": _gaussian_back, "srht": _srht_back}[kind]
    leaves, structure = jax.tree.flatten(like)
    shapes = [jnp.shape(x) for x in leaves]

    def run(z: jax.Array, like: Any) -> Any:
        found = back(key, links.widen(z), shapes)
        return structure.unflatten(
            x.astype(old.dtype)
            for x, old in zip(found, jax.tree.leaves(like), strict=True)
        )

    return _workers.on_any_mesh(run, z, like, out=_workers.all_of(like))


def _require(key: Any, tree: Any, size: Any, kind: str, who: str) -> None:
    links.require_key(who, key)
    if kind not in KINDS:
        raise ValueError(f"{who}: kind must be one of {KINDS}, got {kind!r}")
    _workers.require_integer(who, "size", size)
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError(f"{who}: the tree has no leaves")
    _workers.require_floats(who, tree)
    most = _filled([jnp.shape(x) for x in leaves]) if kind == "srht" else math.inf
    if not 1 <= size <= most:
        upto = f" and at most {most} with 'srht'" if kind == "srht" else ""
        raise ValueError(f"{who}: size must be 1 or more{upto}, got {size}")


def _signs_and_places(
    key: jax.Array, i: int, shape: Any, size: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Draws, for a leaf, the sign of each entry and the number that it is added to."""
    # By the place of the leaf: no two leaves may have the same draws.
    bits = jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32)
    signs = 1 - 2 * (bits & 1).astype(dtype)
    return signs, ((bits >> 1) % size).astype(jnp.int32)


def _count(key: jax.Array, leaves: list, size: int, dtype: Any) -> jax.Array:
    z = jnp.zeros(size, dtype)
    for i, x in enumerate(leaves):
        signs, places = _signs_and_places(key, i, x.shape, size, dtype)
        z = z.at[places].add(signs * x)
    return z


def _count_back(key: jax.Array, z: jax.Array, shapes: list) -> list[jax.Array]:
    found = []
    for i, shape in enumerate(shapes):
        signs, places = _signs_and_places(key, i, shape, z.size, z.dtype)
        found.append(signs * z[places])
    return found


def _row(key: jax.Array, row: jax.Array, shapes: list, dtype: Any) -> list[jax.Array]:
    """Draws one row of a Gaussian R, times the root of s."""
    key = jax.random.fold_in(key, row)
    return [
        jax.random.normal(jax.random.fold_in(key, i), shape, dtype)
        for i, shape in enumerate(shapes)
    ]


def _gaussian(key: jax.Array, leaves: list, size: int, dtype: Any) -> jax.Array:
    shapes = [x.shape for x in leaves]

    def number(row: jax.Array) -> jax.Array:
        draws = _row(key, row, shapes, dtype)
        return sum(
            (jnp.sum(r * x) for r, x in zip(draws, leaves, strict=True)),
            jnp.zeros((), dtype),
        )

    return jax.lax.map(number, jnp.arange(size)) / math.sqrt(size)


def _gaussian_back(key: jax.Array, z: jax.Array, shapes: list) -> list[jax.Array]:
    def add(total: list, row: jax.Array) -> tuple[list, None]:
        draws = _row(key, row, shapes, z.dtype)
        return [t + z[row] * r for t, r in zip(total, draws, strict=True)], None

    zero = [jnp.zeros(shape, z.dtype) for shape in shapes]
    total, _ = jax.lax.scan(add, zero, jnp.arange(z.size))
    return [x / math.sqrt(z.size) for x in total]


def _filled(shapes: list) -> int:
    """Returns the least power of two that is not below the number of entries."""
    return 1 << max(sum(map(math.prod, shapes)) - 1, 0).bit_length()


def _srht(key: jax.Array, leaves: list, size: int, dtype: Any) -> jax.Array:
    whole = _filled([x.shape for x in leaves])
    x = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in leaves])
    x = jnp.pad(x, (0, whole - x.size))
    signs, picked = _signs_and_picks(key, whole, size, dtype)
    return _hadamard(signs * x)[picked] / math.sqrt(size)


def _srht_back(key: jax.Array, z: jax.Array, shapes: list) -> list[jax.Array]:
    whole = _filled(shapes)
    signs, picked = _signs_and_picks(key, whole, z.size, z.dtype)
    spread = jnp.zeros(whole, z.dtype).at[picked].set(z)
    x = signs * _hadamard(spread) / math.sqrt(z.size)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = jnp.split(x[: ends[-1]], ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _signs_and_picks(
    key: jax.Array, whole: int, size: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    sign_key, pick_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (whole,), jnp.int8).astype(dtype)
    return signs, jax.random.choice(pick_key, whole, (size,), replace=False)


def _hadamard(x: jax.Array) -> jax.Array:
    """Multiplies by the matrix of signs whose rows are orthogonal, H^T H = d I."""
    half = 1
    while half < x.size:
        a, b = jnp.moveaxis(x.reshape(-1, 2, half), 1, 0)
        x = jnp.stack([a + b, a - b], 1).reshape(-1)
        half *= 2
    return x
