"""Warm-up and stable phase without an end; the decay is started at run time."""

import jax
import optax

from optlab.schedules import _checks, _phases, shapes


def open_wsd(
    peak: float | jax.Array,
    *,
    decay_steps: int,
    decay_start: int | jax.Array = _phases.NEVER,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
    decay: shapes.Decay = shapes.one_minus_sqrt,
) -> optax.Schedule:
    """Warms up and holds the peak until the decay is started.

    For a run whose budget nobody knows yet: train on, and decay from any of its
    checkpoints. The start may be traced, so one compiled step serves the stable run
    and all its branches; `schedules.steered` keeps it in the state of the run. With t
    the updates already applied, W the warm-up, S the start and D the decay,

        rate = init + (peak - init) t / W                        t < W
        rate = peak                                              W <= t <= S
        rate = end + (peak - end) shape((S + D - t) / D)         S < t

    At t = W it is exactly the peak, from t = S + D on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      decay_steps: Length D of the decay in steps.
      decay_start: Last step S at the peak, at least W; an integer or a scalar integer
        array, which may be traced (traced and below W, it counts as W).
        `schedules.NEVER`, 2^31 - 1, means not yet.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      end_value: Rate after the decay, at most the peak.
      decay: Shape of the decay, as in `schedules.wsd`.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the decay starts before the warm-up ends, or the end value exceeds
        the peak.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> stable = schedules.open_wsd(1.0, decay_steps=4)
      >>> branch = schedules.open_wsd(1.0, decay_steps=4, decay_start=7)
      >>> print(stable(10**9), *(branch(t).round(4) for t in (7, 8, 11)))
      1.0 1.0 0.5 0.0

    Source:
      Hu et al., MiniCPM, 2024, arXiv:2404.06395; branches of one stable run: Haegele
      et al., 2024, arXiv:2405.18392.
    """
    who = "schedules.open_wsd"
    warmup = _checks.whole(who, "warmup_steps", warmup_steps, 0)
    length = _checks.whole(who, "decay_steps", decay_steps, 1)
    start = _checks.start(who, "decay_start", decay_start, warmup)
    _checks.falls(who, peak, end_value)
    fall = _phases.shape_between(who, decay, peak, end_value)

    def rate(count: jax.Array) -> jax.Array:
        return _phases.between(
            peak, end_value, fall(_phases.left(count, start, length))
        )

    return _phases.warmed(who, peak, rate, warmup_steps=warmup, init_value=init_value)
