"""UBA: the unified budget-aware schedule, after a linear warm-up."""

import jax
import optax

from optlab.schedules import _checks, _phases, shapes


def uba(
    peak: float | jax.Array,
    *,
    total_steps: int,
    phi: float | jax.Array = 1.0,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays along the unified budget-aware curve, after a linear warm-up.

    One number goes from holding the peak (phi near 0) through cosine (phi = 2) to an
    early fall. Larger phi is for harder, worse conditioned problems.
    With t the updates already applied, W the warm-up and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = end + (peak - end) v / (v + (phi / 2) (1 - v))
        v = (1 + cos(pi p)) / 2,   p = (t - W) / (T - W)

    At t = W it is exactly the peak, from t = T on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, the warm-up included.
      phi: Difficulty, positive; it may be traced. 2 is cosine.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      end_value: Rate from step T on, at most the peak.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the warm-up leaves no step, the end value exceeds the peak, or phi
        is not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.uba(1.0, total_steps=10, warmup_steps=4)
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 7, 10, 99)))
      0.0 0.5 1.0 0.6667 0.0 0.0

    Source:
      Tang et al., "Stepsize anything", 2025, arXiv:2505.24452:
      2 (1 + cos) / (2 phi + (2 - phi) (1 + cos)), here as a Moebius map of the cosine,
      which does not cancel near the end. The formula was read in an application's
      code; the authors' own code and their advice on phi are UNVERIFIED.
    """
    _checks.positive("schedules.uba", "phi", phi)
    return _phases.warmup_hold_decay(
        "schedules.uba",
        peak,
        total_steps=total_steps,
        decay_steps=None,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=shapes.moebius(phi / 2, shapes.cosine),
    )
