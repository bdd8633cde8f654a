"""Linear decay, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _phases, shapes


def linear(
    peak: float | jax.Array,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays in a straight line from the peak, after a linear warm-up.

    Decaying all the way to zero is the strongest simple choice for a known budget.
    With t the updates already applied, W the warm-up and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = end + (peak - end) (1 - p),   p = (t - W) / (T - W)

    At t = W it is exactly the peak, from t = T on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, the warm-up included.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      end_value: Rate from step T on, at most the peak.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the warm-up leaves no step, or the end value exceeds the peak.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.linear(1.0, total_steps=10, warmup_steps=4)
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 7, 10, 99)))
      0.0 0.5 1.0 0.5 0.0 0.0

    Source:
      Defazio et al., 2023, arXiv:2310.07831: the schedule that the last-iterate bound
      asks for when gradient norms are constant. No difference found.
    """
    return _phases.warmup_hold_decay(
        "schedules.linear",
        peak,
        total_steps=total_steps,
        decay_steps=None,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shapes.linear,
    )
