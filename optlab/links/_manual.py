"""What `jax.shard_map` must be told of arrays that its devices have in common."""

from typing import Any

import jax
import jax.numpy as jnp


def vary_like(tree: Any, like: Any) -> Any:
    """Marks arrays as each device's own along the axes where those of another tree are.

    Inside `jax.shard_map` the gradient to what devices share is their sum, made before
    a device could do anything with its part. The gradient to what varies is that part.

    Args:
      tree: Tree of arrays, such as parameters.
      like: Tree of arrays, such as a batch.

    Returns:
      The tree, with the values it had; outside `jax.shard_map`, and where it does not
      check what varies, the tree itself.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> from optlab import links
      >>> def slope(w, x):
      ...     w = links.vary_like(w, x)
      ...     return jax.grad(lambda w: jnp.vdot(w, x))(w)
      >>> auto = (jax.sharding.AxisType.Auto,)
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=auto)
      >>> run = jax.shard_map(
      ...     slope, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
      >>> print(run(jnp.zeros(2), jnp.ones(2)))
      [1. 1.]

    Source:
      Written for this library.
    """
    leaves = [jax.typeof(jnp.asarray(x)) for x in jax.tree.leaves(like)]
    wanted = frozenset().union(*(x.manual_axis_type.varying for x in leaves))

    def leaf(x: Any) -> Any:
        if not wanted:
            return x
        missing = wanted - jax.typeof(jnp.asarray(x)).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying")

    return jax.tree.map(leaf, tree)
