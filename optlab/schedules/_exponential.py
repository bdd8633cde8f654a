"""Exponential decay, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _phases, shapes


def exponential(
    peak: float | jax.Array,
    *,
    total_steps: int,
    end_value: float | jax.Array,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays by the same factor at every step, after a linear warm-up.

    Stretches of equal length divide the rate by the same number, so it ends above zero.
    With t the updates already applied, W the warm-up and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = peak (end / peak)^p,   p = (t - W) / (T - W)

    At t = W it is exactly the peak, from t = T on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, the warm-up included.
      end_value: Rate from step T on, positive, at most the peak.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the warm-up leaves no step, or the end value exceeds the peak or is
        not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> arguments = {"total_steps": 10, "warmup_steps": 4, "end_value": 0.01}
      >>> rate = schedules.exponential(1.0, **arguments)
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 10, 99)))
      0.0 0.5 1.0 0.01 0.01

    Source:
      Compared with others by Senior et al., 2013, doi:10.1109/ICASSP.2013.6638963
      (UNVERIFIED: known by its title). Differs from Optax's `exponential_decay`: it is
      given by where it ends, not by a rate of decay.
    """
    return _phases.warmup_hold_decay(
        "schedules.exponential",
        peak,
        total_steps=total_steps,
        decay_steps=None,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shapes.geometric,
    )
