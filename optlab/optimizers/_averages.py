"""The parameters to evaluate, wherever in a state the average of them is."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def evaluated(who: str, kind: type, field: str, state: Any, params: Any) -> Any:
    """Returns the averages that states of one kind hold, in place of the parameters.

    Args:
      who: Name of the function that asks, and after it of the method, for the error.
      kind: Type of the states; each has a count of its updates.
      field: Name of the average in them, a tree shaped like the parameters or None.
      state: The state, with anything around those of this kind.
      params: The parameters that are trained; leaves without an average, and all before
        the first update, are returned as they are.

    Returns:
      A tree shaped like the parameters, of their dtypes.

    Raises:
      ValueError: If there is no state of this kind inside.
    """

    def is_state(node: Any) -> bool:
        return isinstance(node, kind)

    def is_hidden(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]
    if not found:
        raise ValueError(
            f"{who}_params: there is no {kind.__name__} in the state; give it what"
            f" {who}(...).init or its update has returned"
        )
    leaves, structure = jax.tree.flatten(params)
    for one in found:
        if getattr(one, field) is None:
            continue
        # By leaves: those of an nnx.Optimizer are variables of another kind.
        (count,) = jax.tree.leaves(one.count)
        averages = jax.tree.leaves(getattr(one, field), is_leaf=is_hidden)
        leaves = [
            p if is_hidden(x) else jnp.where(count == 0, p, x.astype(p.dtype))
            for p, x in zip(leaves, averages, strict=True)
        ]
    return structure.unflatten(leaves)
