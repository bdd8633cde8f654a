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
      float32}, and the values of a steered schedule by name. The group is the label
      under `optax.partition` ('matrix', 'rest') and of `schedules.per_group`, or ''
      where there is none; a second link in one group gets the path to it.

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
        labels = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        for name, numbers in _groups(node).items():
            group = "/".join(str(label) for label in (*labels, *name))
            if group in found:
                group = "/".join((trees.path_string(path), *name))
            found[group] = numbers
    return found


def _groups(node: Any) -> dict[tuple[str, ...], dict[str, jax.Array]]:
    """Returns the numbers of a link, by the name of a group if it has any."""
    rates, settings = node.learning_rate, getattr(node, "settings", {})
    if isinstance(rates, dict):
        groups = {(name,): (rates[name], settings.get(name, {})) for name in rates}
    else:
        groups = {(): (rates, settings)}
    return {
        name: {
            # A variable of nnx is a tree with one leaf, the array.
            number: jax.tree.leaves(value)[0]
            for number, value in {
                "count": node.count,
                "learning_rate": rate,
                **values,
            }.items()
        }
        for name, (rate, values) in groups.items()
    }
