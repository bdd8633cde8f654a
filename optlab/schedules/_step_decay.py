"""Drops at given steps, after a linear warm-up."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import _checks, _phases


def step_decay(
    peak: float | jax.Array,
    *,
    boundaries: Sequence[int],
    factor: float | jax.Array = 0.1,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Multiplies the rate by a factor at each of some steps, after a linear warm-up.

    With t the updates already applied and W the warm-up,

        rate = init + (peak - init) t / W                    t < W
        rate = peak factor^(number of boundaries <= t)       W <= t

    At t = W it is exactly the peak; a boundary has the new rate already.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      boundaries: Steps of the drops, increasing, after the warm-up.
      factor: What each drop multiplies with, positive; it may be traced.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If boundaries do not increase or lie within the warm-up, or the
        factor is not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.step_decay(1.0, boundaries=(10, 20), factor=0.5)
      >>> print(*(rate(t) for t in (0, 9, 10, 19, 20, 99)))
      1.0 1.0 0.5 0.5 0.25 0.25

    Source:
      He et al., 2015, arXiv:1512.03385. Differs from Optax's
      `piecewise_constant_schedule`: one factor for all drops, whose powers are not
      products of rounded ones.
    """
    who = "schedules.step_decay"
    warmup = _checks.whole(who, "warmup_steps", warmup_steps, 0)
    drops = _checks.increasing(who, "boundaries", boundaries, warmup + 1)
    _checks.positive(who, "factor", factor)

    def rate(count: jax.Array) -> jax.Array:
        levels = jnp.stack(
            [peak * jnp.asarray(factor**i, float) for i in range(len(drops) + 1)]
        )
        passed = jnp.expand_dims(count, -1) >= jnp.asarray(drops)
        return levels[passed.sum(-1)]

    return _phases.warmed(who, peak, rate, warmup_steps=warmup, init_value=init_value)


def thirty_sixty_ninety(
    peak: float | jax.Array,
    *,
    total_steps: int,
    factor: float | jax.Array = 0.1,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Drops at 30, 60 and 90 per cent of the run, after a linear warm-up.

    The classic of image classification in 100 epochs; `step_decay` with its boundaries
    at 3 T / 10, 6 T / 10 and 9 T / 10, rounded down, T the total.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps, the warm-up included; at least 4.
      factor: What each drop multiplies with, positive; it may be traced.
      warmup_steps: Length W of the warm-up in steps, less than 3 T / 10.
      init_value: Rate at step 0 when there is a warm-up.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the run is too short, the warm-up reaches the first drop, or the
        factor is not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.thirty_sixty_ninety(1.0, total_steps=100, factor=0.5)
      >>> print(*(rate(t) for t in (0, 29, 30, 60, 90, 999)))
      1.0 1.0 0.5 0.25 0.125 0.125

    Source:
      He et al., 2015, arXiv:1512.03385; as a profile sampled at three points: Chen et
      al., 2021, arXiv:2107.04197.
    """
    who = "schedules.thirty_sixty_ninety"
    total = _checks.whole(who, "total_steps", total_steps, 4)
    warmup = _checks.whole(who, "warmup_steps", warmup_steps, 0)
    drops = [tenths * total // 10 for tenths in (3, 6, 9)]
    if warmup >= drops[0]:
        raise ValueError(
            f"{who}: warmup_steps={warmup} reaches the first drop, step {drops[0]} of"
            f" {total}"
        )
    return step_decay(
        peak,
        boundaries=drops,
        factor=factor,
        warmup_steps=warmup,
        init_value=init_value,
    )
