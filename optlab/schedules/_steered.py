"""A schedule whose values lie in the state of the run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


class Steered:
    """A schedule whose values can be changed while a run goes on; see `steered`.

    Attributes:
      values: Initial values by name.
    """

    def __init__(self, build: Callable[..., optax.Schedule], values: dict[str, Any]):
        self.values = values
        # Compiled with the values as arguments: eager calls compile once too.
        self._rate = jax.jit(lambda count, values: build(**values)(count))

    def __call__(self, count: jax.typing.ArrayLike, /, **values: Any) -> jax.Array:
        """Returns the rate of a step.

        Args:
          count: Updates already applied, integer, any shape.
          **values: Values in force; those left out are the initial ones.

        Returns:
          Rate, shape of the count.
        """
        return self._rate(count, {**self.values, **values})


def steered(
    build: Callable[..., optax.Schedule], **values: int | float | jax.Array
) -> Steered:
    """Keeps some values of a schedule in the state of the run, to be set at any step.

    The chains of this library (`links.scale_by_learning_rate` and every optimizer that
    ends with it) keep the values in their state, so a checkpoint has them, and

        state = optax.tree.set(state, decay_start=jnp.int32(step))

    starts the decay of a run or of a restored checkpoint without a new compilation.
    Set an array of the same type: a bare Python number is compiled for once more. In an
    `nnx.Optimizer` the values are variables, to be set in place:

        for _, value in optax.tree.get_all_with_path(opt_state, "decay_start"):
            value[...] = jnp.int32(step)

    Anything else that takes a schedule, Optax's links too, sees one with the initial
    values for ever. A restored state brings its values along: those given here are
    then not used.

    Args:
      build: Function from the named values to a schedule; it must take traced values.
      **values: Initial values, numbers or scalar arrays. Integers are kept as int32,
        others as float32 (float64 with 64-bit types).

    Returns:
      The schedule, step -> rate, with its initial values in the attribute `values`.

    Raises:
      ValueError: If no value is given, if one is no scalar, or if the schedule refuses
        the initial values.
      TypeError: If a value is no number, or what is built is no schedule.

    Example:
      >>> import functools, jax.numpy as jnp, optax
      >>> from optlab import optimizers, schedules
      >>> stable = functools.partial(schedules.open_wsd, 1.0, decay_steps=4)
      >>> tx = optimizers.sgd(
      ...     schedules.steered(stable, decay_start=schedules.NEVER), momentum=0.0
      ... )
      >>> state = tx.init(jnp.ones(1))
      >>> _, state = tx.update(jnp.ones(1), state)  # step 0
      >>> state = optax.tree.set(state, decay_start=jnp.int32(1))
      >>> for _ in range(2):
      ...     _, state = tx.update(jnp.ones(1), state)
      ...     print(optax.tree.get(state, "learning_rate"))
      1.0
      0.5

    Source:
      Written for this library.
    """
    who = "schedules.steered"
    if not values:
        raise ValueError(f"{who}: name at least one value, such as decay_start=NEVER")
    for name, value in values.items():
        if name in ("count", "learning_rate"):
            raise ValueError(f"{who}: {name!r} has a place of its own in the state")
        if not _is_number(value):
            raise TypeError(f"{who}: {name} must be a number, got {value!r}")
        if jnp.shape(value) != ():
            raise ValueError(
                f"{who}: {name} must be a scalar, got shape {jnp.shape(value)}"
            )
    schedule = build(**values)  # refuses what it knows to be wrong, now
    if not callable(schedule):
        raise TypeError(
            f"{who}: build must return a schedule, got {type(schedule).__name__}"
        )
    return Steered(build, values)


def _is_number(value: Any) -> bool:
    if hasattr(value, "dtype"):
        return jnp.issubdtype(value.dtype, jnp.number)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
