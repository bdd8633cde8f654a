"""Arrays that come after a number."""

from typing import Any

import jax
import jax.numpy as jnp


def after(tree: Any, number: jax.Array) -> Any:
    """Makes a tree wait for a number that is made of what the tree will replace.

    A buffer of the state is read for a sum and then written anew. Unless the new one
    depends on the sum, the compiler does not know that it comes later, and keeps a copy
    of the old one: two readings and writings of the whole, and the memory.

    Args:
      tree: Tree of floating arrays, from which the new buffer is made.
      number: The sum or what follows from it, shape (); by rights never NaN.

    Returns:
      The tree as it is; NaN if the number is.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> old, new = jnp.array([3.0, 1.0]), jnp.array([1.0, 2.0])
      >>> slope = jnp.sum(old * new)
      >>> print(slope, links.after(new, slope))
      5.0 [1. 2.]

    Source:
      Written for this library.
    """
    return jax.tree.map(
        lambda x: jnp.where(jnp.isnan(number), number, x).astype(x.dtype), tree
    )
