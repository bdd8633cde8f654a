"""How leaves of a tree are called."""

from typing import Any

import jax


def path_string(path: tuple[Any, ...]) -> str:
    """Writes a JAX key path as 'blocks/0/query/kernel'.

    Args:
      path: Key path, as from `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The keys joined by '/'; the `.value` that nnx puts under a variable is left out.

    Example:
      >>> import jax
      >>> from optlab import trees
      >>> leaves = jax.tree_util.tree_leaves_with_path({"layers": [{"kernel": 1}]})
      >>> trees.path_string(leaves[0][0])
      'layers/0/kernel'
    """
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey):
        path = path[:-1] if path[-1].name in ("value", "raw_value") else path
    return jax.tree_util.keystr(path, simple=True, separator="/")
