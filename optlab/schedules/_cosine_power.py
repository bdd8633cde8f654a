"""Cosine power annealing, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _checks, _phases, shapes


def cosine_power(
    peak: float | jax.Array,
    *,
    total_steps: int,
    b: float | jax.Array = 10.0,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays along a cosine in the exponent, after a linear warm-up.

    Smooth as a cosine at both ends, but more of the run is spent at small rates: the
    larger the order, the more.
    With t the updates already applied, W the warm-up and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = end + (peak - end) (b^v - 1) / (b - 1)
        v = (1 + cos(pi p)) / 2,   p = (t - W) / (T - W)

    At t = W it is exactly the peak, from t = T on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, the warm-up included.
      b: Order, positive; it may be traced. 1 is cosine.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      end_value: Rate from step T on, at most the peak.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the warm-up leaves no step, the end value exceeds the peak, or b is
        not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.cosine_power(1.0, total_steps=10, warmup_steps=4, b=9.0)
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 7, 10, 99)))
      0.0 0.5 1.0 0.25 0.0 0.0

    Source:
      Hundt et al., sharpDARTS, 2019, arXiv:1903.09900. Differs from the authors' code:
      there the curve is sampled once an epoch and stretched so that its first and last
      samples are the peak and the floor; here it is continuous.
    """
    _checks.positive("schedules.cosine_power", "b", b)
    return _phases.warmup_hold_decay(
        "schedules.cosine_power",
        peak,
        total_steps=total_steps,
        decay_steps=None,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shapes.exponential(b, shapes.cosine),
    )
