"""Schedules whose steps are examples, for batches that change."""

from typing import Any

import optax

from optlab.schedules import _checks, _steered


def in_samples(
    schedule: optax.Schedule, batch_size: int, *, factor: float = 1.0
) -> _steered.Steered:
    """Follows a schedule by the examples that a run has seen, not by its updates.

        rate(t) = factor schedule(from_samples + (t - from_update) batch_size)

    A schedule written in examples, `total_steps` and all, is the same whatever the
    batch size; one written in updates would be run through too slowly when the batch
    has grown. These four values lie in the state of the run (see `steered`), so that a
    checkpoint has them, and when the batch changes after some updates and samples,

        state = optax.tree.set(
            state, batch_size=jnp.int32(size), from_update=jnp.int32(updates),
            from_samples=jnp.int32(samples), factor=jnp.float32(rate))

    without a new compilation. `controllers.batch_size` has all of them in its state.

    Args:
      schedule: From examples to the rate. It counts to 2^31 - 1; in a longer run count
        microbatches, and give batch sizes in microbatches too.
      batch_size: Examples in an update, until it is set.
      factor: Factor on the rate, until it is set.

    Returns:
      A schedule, update -> rate, with its initial values in the attribute `values`.

    Raises:
      ValueError: If batch_size is below 1 or factor not positive.
      TypeError: If batch_size is no integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers, schedules
      >>> line = schedules.linear(1.0, total_steps=100)  # of 100 examples
      >>> tx = optimizers.sgd(schedules.in_samples(line, 10), momentum=0.0)
      >>> state = tx.init(jnp.ones(1))
      >>> for _ in range(3):
      ...     _, state = tx.update(jnp.ones(1), state)
      >>> print(f"{optax.tree.get(state, 'learning_rate'):.2f}")  # 20 were seen before
      0.80
      >>> state = optax.tree.set(
      ...     state, batch_size=jnp.int32(40), from_update=jnp.int32(3),
      ...     from_samples=jnp.int32(30))
      >>> for _ in range(2):
      ...     _, state = tx.update(jnp.ones(1), state)
      ...     print(f"{optax.tree.get(state, 'learning_rate'):.2f}")
      0.70
      0.30

    Source:
      Written for this library.
    """
    who = "schedules.in_samples"
    size = _checks.whole(who, "batch_size", batch_size, 1)
    _checks.positive(who, "factor", factor)

    def build(
        batch_size: Any, from_update: Any, from_samples: Any, factor: Any
    ) -> optax.Schedule:
        def rate(count: Any) -> Any:
            return factor * schedule(from_samples + (count - from_update) * batch_size)

        return rate

    return _steered.steered(
        build, batch_size=size, from_update=0, from_samples=0, factor=float(factor)
    )
