"""REX: reflected exponential decay, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _checks, _phases, shapes


def rex(
    peak: float | jax.Array,
    *,
    total_steps: int,
    k: float | jax.Array = 0.5,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays along the reflected exponential, after a linear warm-up.

    Holds the rate high for longer than linear decay and falls faster at the end; made
    for budgets that are too small.
    With t the updates already applied, W the warm-up and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = end + (peak - end) (1 - p) / (1 - p + k p),   p = (t - W) / (T - W)

    At t = W it is exactly the peak, from t = T on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, the warm-up included.
      k: Bend, positive; it may be traced. The paper's is 1/2; a widely copied code has
        1/10, which stays higher for longer; 1 is linear decay.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      end_value: Rate from step T on, at most the peak.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the warm-up leaves no step, the end value exceeds the peak, or k is
        not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.rex(1.0, total_steps=10, warmup_steps=4)
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 7, 10, 99)))
      0.0 0.5 1.0 0.6667 0.0 0.0

    Source:
      Chen et al., 2021, arXiv:2107.04197: (1 - z) / (1/2 + (1 - z) / 2). Differs from
      the code at `IvanVassi/REX_LR`: that one has k = 0.1 and starts anew after T.
    """
    _checks.positive("schedules.rex", "k", k)
    return _phases.warmup_hold_decay(
        "schedules.rex",
        peak,
        total_steps=total_steps,
        decay_steps=None,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shapes.moebius(k),
    )
