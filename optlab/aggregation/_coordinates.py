"""Coordinate by coordinate: the median, and the mean without the extremes."""

from typing import Any

import jax
import jax.numpy as jnp

from optlab import links
from optlab.aggregation import _workers


def coordinate_median(stacked: Any) -> Any:
    """Takes the median over the workers, for each entry on its own.

    Any minority of workers, whatever it sends, leaves each entry among those of the
    others. The result is no worker's tree, and with data that differ from worker to
    worker it is biased; nearest neighbours and trimming use more of what was sent.

    Args:
      stacked: Tree of arrays (n, ...), what came from n workers.

    Returns:
      Tree of arrays (...), of the stack's dtypes; for even n the mean of the two in
      the middle. A NaN counts as larger than anything, and so as one of the faulty:
      the median is finite as long as those are fewer than half.

    Raises:
      TypeError: If a leaf holds no floats.
      ValueError: If leaves differ in the number of workers.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import aggregation
      >>> sent = jnp.array([[0.0, 1.0], [1.0, 2.0], [jnp.nan, -jnp.inf]])
      >>> print(aggregation.coordinate_median(sent))
      [1. 1.]

    Source:
      Yin et al., "Byzantine-robust distributed learning: towards optimal statistical
      rates", 2018, arXiv:1803.01498.
    """
    _workers.number_of("coordinate_median", stacked)

    def rule(stacked: Any) -> Any:
        def leaf(x: jax.Array) -> jax.Array:
            return _workers.middle(links.widen(x)).astype(x.dtype)

        return jax.tree.map(leaf, stacked)

    return _workers.on_any_mesh(rule, stacked, out=_workers.one_of(stacked))


def trimmed_mean(stacked: Any, faulty: int) -> Any:
    """Averages each entry over the workers, without the f least and the f largest.

    Args:
      stacked: Tree of arrays (n, ...), what came from n workers.
      faulty: How many of them may be faulty, f; less than half.

    Returns:
      Tree of arrays (...), of the stack's dtypes: the mean of n - 2f numbers for each
      entry. A NaN counts as larger than anything, and so is trimmed; if more than f
      workers sent one there, the entry is NaN. With f = 0 it is the mean.

    Raises:
      TypeError: If faulty is no integer, or a leaf holds no floats.
      ValueError: If faulty is out of range or leaves differ in the number of workers.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import aggregation
      >>> sent = jnp.array([[0.0], [1.0], [2.0], [jnp.nan]])
      >>> print(aggregation.trimmed_mean(sent, 1))
      [1.5]

    Source:
      Yin et al., 2018, arXiv:1803.01498.
    """
    n = _workers.number_of("trimmed_mean", stacked)
    _workers.require_faulty("trimmed_mean", faulty, n, 1)

    def rule(stacked: Any) -> Any:
        def leaf(x: jax.Array) -> jax.Array:
            ranked = jnp.sort(links.widen(x), 0)
            return jnp.mean(ranked[faulty : n - faulty], 0).astype(x.dtype)

        return jax.tree.map(leaf, stacked)

    return _workers.on_any_mesh(rule, stacked, out=_workers.one_of(stacked))
