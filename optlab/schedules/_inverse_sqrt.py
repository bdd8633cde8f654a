"""Inverse square root, after a linear warm-up."""

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import _checks, _phases

WITHOUT_WARMUP = 10_000


def inverse_sqrt(
    peak: float | jax.Array,
    *,
    warmup_steps: int = 0,
    timescale: float | jax.Array | None = None,
    init_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Decays as one over the square root of the step, after a linear warm-up.

    Needs no total: a run can go on for ever. With t the updates already applied, W the
    warm-up and c the timescale,

        rate = init + (peak - init) t / W                    t < W
        rate = peak sqrt(c / (t - W + c))                    W <= t

    At t = W it is exactly the peak; with c = W it is peak sqrt(W / t) afterwards.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      timescale: Steps c after which the rate has fallen to 1 / sqrt(2) of the peak,
        positive; it may be traced. None for W, or 10,000 without a warm-up.
      init_value: Rate at step 0 when there is a warm-up.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the length of the warm-up is negative, or the timescale is not
        positive.
      TypeError: If the length of the warm-up is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.inverse_sqrt(1.0, warmup_steps=4)
      >>> print(*(rate(t) for t in (0, 2, 4, 16, 64)))
      0.0 0.5 1.0 0.5 0.25

    Source:
      Vaswani et al., 2017, arXiv:1706.03762, where the peak follows from the width of
      the model. The timescale and its defaults are those of Hugging Face transformers.
    """
    who = "schedules.inverse_sqrt"
    warmup = _checks.whole(who, "warmup_steps", warmup_steps, 0)
    scale = (warmup or WITHOUT_WARMUP) if timescale is None else timescale
    _checks.positive(who, "timescale", scale)

    def rate(count: jax.Array) -> jax.Array:
        done = jnp.maximum(count - warmup, 0).astype(float)
        return peak / jnp.sqrt(1 + done / scale)

    return _phases.warmed(who, peak, rate, warmup_steps=warmup, init_value=init_value)
