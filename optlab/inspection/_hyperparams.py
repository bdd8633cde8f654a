"""Hyperparameters in force, read from the state of any chain."""

from typing import Any

import jax

from optlab import trees


def hyperparams(state: Any) -> dict[str, dict[str, jax.Array]]:
    """Finds the step and the rate of every link in a state that holds both.

    Nothing is copied to the host: the values are the arrays of the state, so this may
    be called under `jax.jit`.

    Args:
      state: State of any transformation, however nested; an `nnx.Optimizer`'s
        `opt_state` too.

    Returns:
      A dictionary from the group to its numbers, {"count": int32, "learning_rate":
      float32}. The group is the label under `optax.partition` ('matrix', 'rest'), or
      '' where there is none; a second link in one group gets the path to it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import inspection, optimizers
      >>> tx = optimizers.muon(0.02, rest=optimizers.adamw(3e-4))
      >>> state = tx.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
      >>> found = inspection.hyperparams(state)
      >>> {group: f"{found[group]['learning_rate']:.4f}" for group in found}
      {'matrix': '0.0200', 'rest': '0.0003'}

    Source:
      Written for this library.
    """

    def is_link(node: Any) -> bool:
        return {"count", "learning_rate"} <= set(getattr(node, "_fields", ()))

    found: dict[str, dict[str, jax.Array]] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_link):
        if not is_link(node):
            continue
        numbers = {"count": node.count, "learning_rate": node.learning_rate}
        # A variable of nnx is a tree with one leaf, the array.
        numbers = {name: jax.tree.leaves(value)[0] for name, value in numbers.items()}
        labels = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        group = "/".join(str(label) for label in labels)
        if group in found:
            group = trees.path_string(path)
        found[group] = numbers
    return found
