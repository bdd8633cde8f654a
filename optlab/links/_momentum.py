"""The momentum of torch, whose first sum is the first gradient."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab.links import _arrays, _leaves, _ranges


class AddDampenedState(NamedTuple):
    """State of `add_dampened`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: The sum, shaped like the parameters, float32 or wider.
    """

    count: jax.Array
    momentum: Any


def add_dampened(
    who: str,
    momentum: float | jax.Array | None,
    dampening: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Adds updates up, and leaves a part of every one but the first out.

        m_1 = g_1,   m_t = momentum m_{t-1} + (1 - dampening) g_t

    Args:
      who: Name of the method, for errors.
      momentum: Decay of the sum, in [0, 1); None keeps no sum and changes nothing.
      dampening: Part that is left out, 0 to 1.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> tx = links.add_dampened("me", 0.5, dampening=0.5)
      >>> g, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for _ in range(3):
      ...     updates, state = tx.update(g, state)
      ...     print(updates)
      [1.]
      [1.]
      [1.]

    Source:
      The momentum of `torch.optim.SGD`. Differs from Optax's `trace`: the dampening.
    """
    if momentum is None:
        return optax.with_extra_args_support(optax.identity())
    _ranges.require_decays(who, momentum=momentum)
    if isinstance(dampening, numbers.Real) and not 0 <= dampening <= 1:
        raise ValueError(f"{who}: dampening must be 0 to 1, got {dampening}")

    def init(params: optax.Params) -> AddDampenedState:
        zeros = optax.tree.zeros_like(_arrays.widen(params))
        return AddDampenedState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AddDampenedState]:
        del params, extra_args
        share = jnp.where(state.count == 0, 1.0, 1 - dampening)

        def add(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            m = momentum * m + share * g
            return m, m

        out, sums = _leaves.each_leaf(add, updates, state.momentum)
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, AddDampenedState(count, sums)

    return optax.GradientTransformationExtraArgs(init, update)
