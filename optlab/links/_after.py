"""Arrays that come after a number, or after other arrays."""

from typing import Any

import jax
import jax.numpy as jnp


def after(tree: Any, first: Any) -> Any:
    """Makes a tree wait for what is made of the buffers that the tree will replace.

    A buffer of the state is read for a sum, or for the step, and then written anew.
    Unless the new one depends on what was read for, the compiler does not know that it
    comes later, and keeps a copy of the old one: two readings and writings of the
    whole, and the memory.

    Args:
      tree: Tree of floating arrays, from which the new buffer is made.
      first: The sum or what follows from it, shape (); or a tree like this one, of the
        arrays that come first. By rights never NaN.

    Returns:
      The tree as it is; NaN where what comes first is.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> old, new = jnp.array([3.0, 1.0]), jnp.array([1.0, 2.0])
      >>> slope = jnp.sum(old * new)
      >>> print(slope, links.after(new, slope), links.after(new, old))
      5.0 [1. 2.] [1. 2.]

    Source:
      Written for this library.
    """

    def wait(x: jax.Array, first: jax.Array) -> jax.Array:
        return jnp.where(jnp.isnan(first), first, x).astype(x.dtype)

    if isinstance(first, jax.Array) and not first.ndim:
        return jax.tree.map(lambda x: wait(x, first), tree)
    return jax.tree.map(wait, tree, first)
