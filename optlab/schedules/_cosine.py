"""Decay along half a cosine, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _phases, shapes


def cosine(
    peak: float | jax.Array,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays along half a cosine from the peak, after a linear warm-up.

    Smooth at both ends; the usual choice when the budget is known.
    With t the updates already applied, W the warm-up and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = end + (peak - end) (1 + cos(pi p)) / 2,   p = (t - W) / (T - W)

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
      >>> rate = schedules.cosine(1.0, total_steps=10, warmup_steps=4)
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 7, 10, 99)))
      0.0 0.5 1.0 0.5 0.0 0.0

    Source:
      Loshchilov and Hutter, "SGDR", 2017, arXiv:1608.03983. Differs from Optax: the
      squared form of the cosine, integer differences, and a step count that it can
      resolve beyond 2^24.
    """
    return _phases.warmup_hold_decay(
        "schedules.cosine",
        peak,
        total_steps=total_steps,
        decay_steps=None,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shapes.cosine,
    )
