"""The constant schedule."""

import jax
import jax.numpy as jnp
import optax


def constant(peak: float | jax.Array) -> optax.Schedule:
    """Keeps one value at every step.

    Args:
      peak: The value; a number or a scalar array, which may be traced.

    Returns:
      Schedule, step -> value, shape of the step, floating.

    Example:
      >>> from optlab import schedules
      >>> print(schedules.constant(0.5)(10**9))
      0.5

    Source:
      As Optax's `constant_schedule`; this one returns an array for an array of steps.
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(peak, float), jnp.shape(count))

    return schedule
