"""Krum: the workers that have the closest company."""

from typing import Any

import jax.numpy as jnp

from optlab.aggregation import _workers


def krum(stacked: Any, faulty: int, *, select: int = 1) -> Any:
    """Averages the workers whose nearest neighbours are the nearest.

        score_i = sum of the n - f - 2 least || x_i - x_j ||^2,  j != i
        mean of the `select` workers with the least score

    With one selected, the result is what an honest worker or one near the honest ones
    sent. With more (Multi-Krum) noise is averaged out.

    Args:
      stacked: Tree of arrays (n, ...), what came from n workers.
      faulty: How many of them may be faulty, f; n is at least 2f + 3.
      select: How many to average, 1 to n - f.

    Returns:
      Tree of arrays (...), of the stack's dtypes. Among equal scores the first count.
      Who sent a NaN or an infinity is infinitely far, and so is among the faulty; if
      fewer than n - f - 1 workers are finite, or fewer than selected, the result is
      NaN.

    Raises:
      TypeError: If faulty or select is no integer, or a leaf holds no floats.
      ValueError: If faulty or select is out of range, or leaves differ in the number
        of workers.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import aggregation
      >>> sent = jnp.array([[0.0], [1.0], [1.5], [3.0], [99.0]])
      >>> print(aggregation.krum(sent, 1), aggregation.krum(sent, 1, select=3))
      [1.] [0.8333334]

    Source:
      Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient
      descent", 2017, arXiv:1703.02757. UNVERIFIED against the authors' code.
    """
    n = _workers.number_of("krum", stacked)
    _workers.require_faulty("krum", faulty, n, 3)
    _workers.require_integer("krum", "select", select)
    if not 1 <= select <= n - faulty:
        raise ValueError(
            f"krum: select must be 1 to {n - faulty}, as many as are honest, got"
            f" {select}"
        )

    def rule(stacked: Any) -> Any:
        squares = _workers.squared_distances(stacked)
        others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, squares)
        scores = jnp.sum(jnp.sort(others, 1)[:, : n - faulty - 2], 1)
        return _workers.weighted(stacked, _workers.weights_of_lowest(scores, select))

    return _workers.on_any_mesh(rule, stacked, out=_workers.one_of(stacked))
