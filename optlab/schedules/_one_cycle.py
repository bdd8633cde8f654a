"""One cycle: up to a large rate and down to a tiny one."""

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import _checks, _phases, shapes


def one_cycle(
    peak: float | jax.Array,
    *,
    total_steps: int,
    warmup_steps: int | None = None,
    final_steps: int = 0,
    div_factor: float | jax.Array = 25.0,
    final_div_factor: float | jax.Array = 1e4,
    shape: shapes.Shape = shapes.cosine,
) -> optax.Schedule:
    """Rises to the peak and falls to almost nothing, along one shape.

    With t the updates already applied, W the rise, D the final stretch and T the total,
    low = peak / div_factor and end = low / final_div_factor,

        rate = low + (peak - low) shape(t / W)                       t < W
        rate = end + (peak - end) shape((T - t) / (T - W))           D = 0, W <= t
        rate = low + (peak - low) shape((T - D - t) / (T - D - W))   D > 0, W <= t
        rate = end + (low - end) shape((T - t) / D)                  T - D <= t

    At t = W it is exactly the peak, from t = T on exactly `end`.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T in steps.
      warmup_steps: Length W of the rise in steps; None for 30 % of T, rounded down.
      final_steps: Length D of a final stretch of its own, which starts from `low`; 0
        for none. The linear form has 15 % of T.
      div_factor: Peak over the first rate, at least 1; it may be traced.
      final_div_factor: First rate over the last, at least 1; it may be traced.
      shape: Shape of each stretch, one of `schedules.shapes`.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the stretches do not fit, or a divisor is below 1.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.one_cycle(1.0, total_steps=100)
      >>> print(*(rate(t).round(4) for t in (0, 15, 30, 65, 100)))
      0.04 0.52 1.0 0.5 0.0

    Source:
      Smith and Topin, 2017, arXiv:1708.07120. Same defaults as Optax's
      `cosine_onecycle_schedule` and, with the linear shape and 15 % of final steps,
      `linear_onecycle_schedule`. Momentum is not cycled; give it a schedule of its own.
    """
    who = "schedules.one_cycle"
    total = _checks.whole(who, "total_steps", total_steps, 1)
    if warmup_steps is None:
        warmup_steps = 3 * total // 10
    warmup = _checks.whole(who, "warmup_steps", warmup_steps, 0)
    final = _checks.whole(who, "final_steps", final_steps, 0)
    fall = total - warmup - final
    if fall < 1:
        raise ValueError(
            f"{who}: warmup_steps={warmup} and final_steps={final} leave nothing of"
            f" total_steps={total} for the fall from the peak"
        )
    for name, factor in (
        ("div_factor", div_factor),
        ("final_div_factor", final_div_factor),
    ):
        number = _checks.known(factor)
        if number is not None and not (number >= 1).all():
            raise ValueError(f"{who}: {name} must be at least 1, got {factor}")
    low = peak / div_factor
    end = low / final_div_factor

    @jax.jit
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = _phases.signed(count)
        floor = low if final else end
        left = _phases.left(count, warmup, fall)
        rate = _phases.between(peak, floor, shape(left))
        if final:
            left = _phases.left(count, total - final, final)
            tail = _phases.between(low, end, shape(left))
            rate = jnp.where(count < total - final, rate, tail)
        if warmup:
            done = _phases.fraction(jnp.clip(count, 0, warmup), warmup)
            rise = _phases.between(peak, low, shape(done))
            rate = jnp.where(count < warmup, rise, rate)
        return rate

    return schedule
