"""The constant schedule, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _phases


def constant(
    peak: float | jax.Array,
    *,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Keeps one value at every step, after a linear warm-up.

    With t the updates already applied and W the warm-up,

        rate = init + (peak - init) t / W                    t < W
        rate = peak                                          W <= t

    Args:
      peak: The value; a number or a scalar array, which may be traced.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the length of the warm-up is negative.
      TypeError: If it is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.constant(0.5, warmup_steps=2)
      >>> print(*(rate(t) for t in (0, 1, 2, 10**9)))
      0.0 0.25 0.5 0.5

    Source:
      As Optax's `warmup_constant_schedule`; this one returns an array for an array of
      steps.
    """
    return _phases.warmed(
        "schedules.constant",
        peak,
        lambda count: peak,
        warmup_steps=warmup_steps,
        init_value=init_value,
    )
