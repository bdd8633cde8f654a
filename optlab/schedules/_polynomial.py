"""Polynomial decay, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _checks, _phases, shapes


def polynomial(
    peak: float | jax.Array,
    *,
    total_steps: int,
    power: float | jax.Array = 1.0,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays as a power of the fraction still to come, after a linear warm-up.

    Power 1 is linear decay; above 1 most of the run is spent at small rates, below 1
    the fall comes late. Theory asks for powers above 1 on easy tasks.
    With t the updates already applied, W the warm-up and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = end + (peak - end) (1 - p)^power,   p = (t - W) / (T - W)

    At t = W it is exactly the peak, from t = T on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, the warm-up included.
      power: Exponent, positive; it may be traced.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      end_value: Rate from step T on, at most the peak.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the warm-up leaves no step, the end value exceeds the peak, or the
        power is not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.polynomial(1.0, total_steps=10, warmup_steps=4, power=2.0)
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 7, 10, 99)))
      0.0 0.5 1.0 0.25 0.0 0.0

    Source:
      The "poly" policy of Liu et al., ParseNet, 2015, arXiv:1506.04579 (UNVERIFIED).
      Powers for easy tasks: "Optimal learning-rate schedules under functional scaling
      laws", arXiv:2602.06797, of which only the abstract was read. Differs from Optax:
      integer differences, and the warm-up is part of it.
    """
    _checks.positive("schedules.polynomial", "power", power)
    return _phases.warmup_hold_decay(
        "schedules.polynomial",
        peak,
        total_steps=total_steps,
        decay_steps=None,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shapes.power(power),
    )
