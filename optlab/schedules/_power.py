"""The power scheduler: a power of the tokens seen, below a cap."""

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import _checks, _phases, shapes


def power(
    peak: float | jax.Array,
    *,
    tokens_per_step: float | jax.Array,
    batch_size: float | jax.Array,
    amplitude: float | jax.Array = 4.6,
    exponent: float | jax.Array = -0.51,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    total_steps: int | None = None,
    decay_steps: int = 0,
    end_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Follows a power of the tokens seen, never above the peak.

    One rule for every batch size and every number of tokens: tune it on a small run,
    keep it for a long one. With t the updates already applied, W the warm-up, n the
    tokens of t steps, B the batch size, T the total and D the decay,

        law(t) = min(peak, B amplitude n^exponent),   n = t tokens_per_step
        rate = init + (peak - init) t / W                    t < W
        rate = law(t)                                        W <= t <= T - D
        rate = law(T - D) (end / law(T - D))^q               T - D < t
        q = (t - (T - D)) / D

    At t = W it is exactly the peak if the cap still holds there; with a decay, it is
    exactly the end value from t = T on.

    Args:
      peak: Cap of the rate; a number or a scalar array, which may be traced.
      tokens_per_step: Tokens of one update, sequences times their length.
      batch_size: Sequences B of one update.
      amplitude: Factor of the law, positive; it may be traced.
      exponent: Exponent of the law, negative; it may be traced.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      total_steps: Length T in steps; only a decay needs it.
      decay_steps: Length D of the final decay in steps, 0 for none.
      end_value: Rate from step T on, positive; only for a decay.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If a number is out of range, or the phases do not fit.
      TypeError: If a number of steps is not an integer, or a decay lacks its total.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.power(0.02, tokens_per_step=128 * 4096, batch_size=128)
      >>> print(*(f"{rate(t):.4f}" for t in (0, 1000, 10_000, 100_000)))
      0.0200 0.0200 0.0065 0.0020

    Source:
      Shen et al., 2024, arXiv:2408.13359; the constants are those of Levanter's code,
      for models in the maximal-update parametrisation; that the final decay is
      exponential is UNVERIFIED. Differs from there: 0 tokens count as those of one
      step, and tokens are counted in floating point, where int32 would overflow.
    """
    who = "schedules.power"
    for name, value in (
        ("tokens_per_step", tokens_per_step),
        ("batch_size", batch_size),
        ("amplitude", amplitude),
    ):
        _checks.positive(who, name, value)
    number = _checks.known(exponent)
    if number is not None and not (number < 0).all():
        raise ValueError(f"{who}: exponent must be negative, got {exponent}")
    warmup = _checks.whole(who, "warmup_steps", warmup_steps, 0)
    decay = _checks.whole(who, "decay_steps", decay_steps, 0)
    # The law at one step, in double precision where the numbers are known.
    first = batch_size * amplitude * tokens_per_step**exponent

    def law(count: jax.Array) -> jax.Array:
        return jnp.minimum(
            peak, first * jnp.maximum(count, 1).astype(float) ** exponent
        )

    def decayed(count: jax.Array) -> jax.Array:
        held = law(jnp.minimum(count, start))
        shape = shapes.exponential(law(jnp.asarray(start)) / end_value)
        return _phases.between(
            held, end_value, shape(_phases.left(count, start, decay))
        )

    if decay:
        start = _start(who, total_steps, warmup, decay)
        _checks.positive(who, "end_value", end_value, "; the decay is exponential")
        _checks.falls(who, law(jnp.asarray(start)), end_value)
    return _phases.warmed(
        who,
        peak,
        decayed if decay else law,
        warmup_steps=warmup,
        init_value=init_value,
    )


def _start(who: str, total_steps: int | None, warmup: int, decay: int) -> int:
    """Returns the step at which the decay starts."""
    if total_steps is None:
        raise TypeError(f"{who}: decay_steps={decay} needs total_steps, got None")
    total = _checks.whole(who, "total_steps", total_steps, 1)
    if warmup + decay > total:
        raise ValueError(
            f"{who}: decay_steps={decay} and warmup_steps={warmup} do not fit into"
            f" total_steps={total}"
        )
    return total - decay
