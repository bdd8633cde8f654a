"""Means of the nearest: MoNNA's mixing of workers of whom some cannot be trusted."""

from typing import Any

import jax
import jax.numpy as jnp

from optlab import trees
from optlab.aggregation import _workers


def nearest_neighbor_mean(own: Any, stacked: Any, faulty: int) -> Any:
    """Averages the workers nearest to one, and leaves out as many as may be faulty.

        d_j = || x_j - own ||                        over the whole tree
        mean of the n - f workers with the least d_j

    A worker gives its own parameters, after its own step, and those that it received,
    its own among them. A server has no place of its own: it gives a point that a few
    cannot move, such as `coordinate_median(stacked)`.

    In MoNNA a worker steps along a slow average of its gradients, which makes honest
    workers alike and so the faulty ones visible: `optax.chain(optax.ema(0.99,
    debias=False), links.scale_by_learning_rate(0.75))` on each, with `jax.vmap` over
    the stacks of a simulation; then the parameters are exchanged and mixed.

    Args:
      own: Tree of arrays, the point to be near to.
      stacked: Tree of arrays (n, ...), what came from n workers, `own` included.
      faulty: How many of them may be faulty, f; less than half.

    Returns:
      Tree like `own`, of the stack's dtypes. Among equally near workers the first ones
      count. Who sent a NaN or an infinity is farthest of all, and so is among the
      faulty; if more than f did, or `own` is not finite, the mean is NaN. With f = 0
      it is the mean.

    Raises:
      TypeError: If faulty is no integer, or a leaf holds no floats.
      ValueError: If faulty is out of range or shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import aggregation
      >>> sent = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [10.0, 10.0]])
      >>> print(aggregation.nearest_neighbor_mean(sent[0], sent, 1))
      [0.33333334 0.33333334]
      >>> print(sent.mean(0))
      [2.75 2.75]

    Source:
      Farhadkhani et al., "Robust collaborative learning with linear gradient overhead",
      2023, arXiv:2209.10931. In the authors' code a worker receives n - f vectors and
      averages n - 2f: give those that came.
    """
    who = "nearest_neighbor_mean"
    n = _workers.number_of(who, stacked)
    _workers.require_faulty(who, faulty, n, 1)
    _require_one_of(who, own, stacked)

    def rule(own: Any, stacked: Any) -> Any:
        distances = _workers.distances_to(own, stacked)
        weights = _workers.weights_of_lowest(distances, n - faulty)
        return _workers.weighted(stacked, weights)

    return _workers.on_any_mesh(rule, own, stacked, out=_workers.one_of(stacked))


def mix_nearest_neighbors(stacked: Any, faulty: int) -> Any:
    """Gives every worker the mean of those nearest to it, all at once.

    What `nearest_neighbor_mean` gives to each worker for its own tree, with the n x n
    distances by one product of the stack with itself; on a mesh, one sum of n x n
    numbers over the devices that share a worker's tree. Workers whose distances differ
    by less than rounding may change places.

    Args:
      stacked: Tree of arrays (n, ...), the parameters of n workers.
      faulty: How many of them may be faulty, f; less than half.

    Returns:
      Tree like it. A worker that is not finite itself, or so far off that a squared
      distance overflows, has NaN everywhere.

    Raises:
      TypeError: If faulty is no integer, or a leaf holds no floats.
      ValueError: If faulty is out of range or shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import aggregation
      >>> sent = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [10.0, 10.0]])
      >>> print(aggregation.mix_nearest_neighbors(sent, 1)[:2])
      [[0.33333334 0.33333334]
       [0.33333334 0.33333334]]

    Source:
      Farhadkhani et al., 2023, arXiv:2209.10931, with all workers heard by all.
    """
    who = "mix_nearest_neighbors"
    n = _workers.number_of(who, stacked)
    _workers.require_faulty(who, faulty, n, 1)

    def rule(stacked: Any) -> Any:
        squares = _workers.squared_distances(stacked)
        weights = _workers.weights_of_lowest(squares, n - faulty)
        return _workers.weighted(stacked, weights)

    return _workers.on_any_mesh(rule, stacked, out=_workers.all_of(stacked))


def _require_one_of(who: str, own: Any, stacked: Any) -> None:
    shapes = {
        trees.path_string(path): jnp.shape(x)
        for path, x in jax.tree_util.tree_leaves_with_path(own)
    }
    wanted = {
        trees.path_string(path): jnp.shape(x)[1:]
        for path, x in jax.tree_util.tree_leaves_with_path(stacked)
    }
    for name in (*wanted, *shapes):
        if shapes.get(name) != wanted.get(name):
            raise ValueError(
                f"{who}: leaf '{name}' has shape {shapes.get(name)} in own and"
                f" {wanted.get(name)} in each worker of the stack"
            )
