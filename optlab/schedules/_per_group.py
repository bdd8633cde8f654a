"""One schedule for each group of parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


class PerGroup:
    """A schedule for each group of parameters; see `per_group`.

    Attributes:
      schedules: Schedule by group.
      labels: Tree of group names, or a function from the parameters to it.
      values: Initial values of those groups whose schedule is steered, by group.
    """

    def __init__(self, schedules: dict[str, optax.Schedule], labels: Any):
        self.schedules = schedules
        self.labels = labels
        self.values = {
            group: schedule.values
            for group, schedule in schedules.items()
            if hasattr(schedule, "values")
        }

    def __call__(self, count: jax.typing.ArrayLike, /, **values: Any) -> dict[str, Any]:
        """Returns the rate of every group.

        Args:
          count: Updates already applied, integer, any shape.
          **values: Values in force of steered groups, a dictionary by group.

        Returns:
          Rate by group.
        """
        return {
            group: schedule(count, **values.get(group, {}))
            for group, schedule in self.schedules.items()
        }


def per_group(
    schedules: Mapping[str, float | jax.Array | optax.Schedule],
    labels: Any | Callable[[Any], Any],
) -> PerGroup:
    """Gives each group of parameters a schedule of its own, with one count for all.

    For any optimizer of this library, in place of the learning rate: smaller rates for
    embeddings, for early layers, for a pretrained part. All groups share the optimizer
    and its step; `inspection.hyperparams` shows the rate of every group. Use
    `optax.partition` instead where groups need different optimizers: each of its
    branches has a state and a count of its own.

    Weight decay that is multiplied by the learning rate follows the group's rate too.

    Args:
      schedules: Group -> rate: a number, a scalar array or a schedule, steered or not.
      labels: Tree of group names with the structure of the parameters or a prefix of
        it, or a function from the parameters (or the updates) to that tree. Inside
        `optax.partition` and `optax.masked`, and so in `muon`, it must be a function,
        because some of the leaves are hidden there.

    Returns:
      A function of the step to the rates by group. Optax's own links cannot use it.

    Raises:
      ValueError: If there is no group.
      TypeError: If the name of a group is no string.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import inspection, optimizers, schedules
      >>> rates = schedules.per_group(
      ...     {"slow": 0.25, "fast": schedules.linear(1.0, total_steps=2)},
      ...     {"embedding": "slow", "head": "fast"},
      ... )
      >>> tx = optimizers.sgd(rates, momentum=0.0)
      >>> g = {"embedding": jnp.ones(1), "head": jnp.ones(1)}
      >>> state = tx.init(g)
      >>> for _ in range(2):
      ...     updates, state = tx.update(g, state)
      ...     print(updates["embedding"], updates["head"])
      [-0.25] [-1.]
      [-0.25] [-0.5]

    Source:
      Written for this library.
    """
    who = "schedules.per_group"
    if not schedules:
        raise ValueError(f"{who}: there is no group")
    for group in schedules:
        if not isinstance(group, str):
            raise TypeError(f"{who}: the name of a group is a string, got {group!r}")
    return PerGroup(
        {group: _function(rate) for group, rate in schedules.items()}, labels
    )


def _function(rate: float | jax.Array | optax.Schedule) -> optax.Schedule:
    if callable(rate):
        return rate
    return lambda count: jnp.broadcast_to(jnp.asarray(rate, float), jnp.shape(count))
