"""Warm-up, stable, decay."""

import jax
import optax

from optlab.schedules import _phases, shapes


def wsd(
    peak: float | jax.Array,
    *,
    total_steps: int,
    decay_steps: int,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
    decay: shapes.Decay = shapes.one_minus_sqrt,
) -> optax.Schedule:
    """Warms up, holds the peak, and decays in the last steps.

    Until the decay begins nothing depends on the total, so a run can be extended and
    the decay started from any of its checkpoints. With t the updates already applied,
    W the warm-up, D the decay and T the total,

        rate = init + (peak - init) t / W                    t < W
        rate = peak                                          W <= t <= T - D
        rate = end + (peak - end) shape((T - t) / D)         T - D < t

    At t = W it is exactly the peak, from t = T on exactly the end value. The published
    decays, with q the fraction of the decay done and F the end value:

        =======================  ========================  ====================
        decay                    rate for peak 1           source
        =======================  ========================  ====================
        shapes.one_minus_sqrt    F + (1-F)(1 - sqrt q)     Haegele; Megatron-LM
        shapes.linear            F + (1-F)(1 - q)          transformers
        shapes.cosine            F + (1-F) cos^2(pi q/2)   transformers
        shapes.geometric         F^q, F > 0                exponential decay
        shapes.harmonic          1 / (1 - q + q/F), F > 0  WSD-S
        shapes.half_life(h / D)  0.5^(q D/h), F = 0, held  MiniCPM
        shapes.exponential(2.0)  F + (1-F)(2 0.5^q - 1)    Megatron-LM's own
        =======================  ========================  ====================

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, warm-up and decay included.
      decay_steps: Length D of the decay in steps.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      end_value: Rate from step T on, at most the peak.
      decay: Shape of the decay, one of `schedules.shapes` or a function of the
        fraction of the decay still to come, 1 -> 1 and 0 -> 0. `shapes.geometric` and
        `shapes.harmonic` need a positive end value; when that is traced and 0, the
        decay is not a number.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the phases do not fit, or the end value exceeds the peak or is
        not positive where it must be.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.wsd(1.0, total_steps=10, decay_steps=4, warmup_steps=2)
      >>> print(*(rate(t).round(4) for t in (0, 1, 2, 6, 7, 10)))
      0.0 0.5 1.0 1.0 0.5 0.0

    Source:
      Hu et al., MiniCPM, 2024, arXiv:2404.06395; the 1-sqrt decay: Haegele et al.,
      2024, arXiv:2405.18392. Differs from MiniCPM: its decay is `shapes.half_life`.
    """
    return _phases.warmup_hold_decay(
        "schedules.wsd",
        peak,
        total_steps=total_steps,
        decay_steps=decay_steps,
        warmup_steps=warmup_steps,
        init_value=init_value,
        end_value=end_value,
        shape=decay,
    )
