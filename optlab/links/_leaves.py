"""One rule for every leaf, which makes the update and the next state together."""

from collections.abc import Callable
from typing import Any

import jax

from optlab.links import _arrays


def each_leaf(rule: Callable[..., Any], updates: Any, *buffers: Any) -> tuple[Any, ...]:
    """Moves all leaves of a tree, and what a method remembers of each, by one rule.

    A `jax.tree.map` for each buffer and one for the update would each walk the tree and
    repeat what the others have computed. Here everything about a leaf is one
    expression, which the compiler makes one loop of.

    Args:
      rule: From a leaf of the updates and its buffers to the new leaf and the new
        buffers. The leaf comes in float32 or wider.
      updates: Tree of arrays.
      *buffers: Trees of arrays of that structure.

    Returns:
      The new updates and the new buffers. Each leaf keeps the dtype that it came with.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> def momentum(g, m):
      ...     m = 0.5 * m + g
      ...     return m, m
      >>> g = {"w": jnp.ones(2, jnp.bfloat16)}
      >>> u, m = links.each_leaf(momentum, g, {"w": jnp.ones(2)})
      >>> print(u["w"], u["w"].dtype, m["w"].dtype)
      [1.5 1.5] bfloat16 float32

    Source:
      Written for this library.
    """
    leaves, structure = jax.tree.flatten(updates)
    columns = [structure.flatten_up_to(buffer) for buffer in buffers]
    if not leaves:
        return updates, *buffers

    def moved(*old: jax.Array) -> list[jax.Array]:
        new = rule(_arrays.widen(old[0]), *old[1:])
        return [x.astype(y.dtype) for x, y in zip(new, old, strict=True)]

    rows = [moved(*row) for row in zip(leaves, *columns, strict=True)]
    return tuple(structure.unflatten(column) for column in zip(*rows, strict=True))
