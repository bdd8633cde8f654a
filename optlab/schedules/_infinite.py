"""The infinite schedule: cool down once, stay, anneal whenever a model is wanted."""

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import _checks, _phases, shapes


def infinite(
    peak: float | jax.Array,
    *,
    stable_value: float | jax.Array,
    end_value: float | jax.Array,
    cooldown_steps: int,
    annealing_steps: int,
    annealing_start: int | jax.Array = _phases.NEVER,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    cooldown: shapes.Decay = shapes.cosine,
    annealing: shapes.Decay = shapes.geometric,
) -> optax.Schedule:
    """Cools down from the peak to a rate that lasts, and anneals when it is told to.

    For continual training: each data set goes on from the stable phase of the one
    before, so nothing is warmed up again, and a finished model is annealed off it as a
    branch. With t the updates already applied, W the warm-up, C the cool-down, N the
    start and A the length of the annealing,

        rate = init + (peak - init) t / W                                  t < W
        rate = stable + (peak - stable) cooldown((W + C - t) / C)          t <= W + C
        rate = stable                                                      t <= N
        rate = stable (end / stable)^((t - N) / A)                         t <= N + A

    At t = W it is exactly the peak, from t = W + C to N exactly the stable value, from
    t = N + A on exactly the end value.

    Args:
      peak: Largest rate; a number or a scalar array, which may be traced.
      stable_value: Rate of the stable phase, at most the peak.
      end_value: Rate after the annealing, at most the stable value; positive for the
        default annealing.
      cooldown_steps: Length C of the cool-down in steps; with 0 the peak lasts.
      annealing_steps: Length A of the annealing in steps.
      annealing_start: Last step N of the stable phase, at least W + C; an integer or a
        scalar integer array, which may be traced (traced and below W + C, it counts as
        W + C). `schedules.NEVER`, 2^31 - 1, means not yet.
      warmup_steps: Length W of the warm-up in steps, 0 for none.
      init_value: Rate at step 0 when there is a warm-up.
      cooldown: Shape of the cool-down: `shapes.cosine`, `shapes.inverse_sqrt(10.0)`,
        `shapes.linear`, or another from 1 to 0.
      annealing: Shape of the annealing; exponential decay unless given.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If the annealing starts too early, the rates do not fall in order, or
        the end value is not positive.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.infinite(
      ...     1.0, stable_value=0.25, end_value=0.0625, warmup_steps=2,
      ...     cooldown_steps=4, annealing_steps=2, annealing_start=100,
      ... )
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 6, 100, 101, 102, 999)))
      0.0 1.0 0.625 0.25 0.25 0.125 0.0625 0.0625

    Source:
      Ibrahim et al., 2024, arXiv:2403.08763, checked against two forks of GPT-NeoX.
      Differs from arXiv:2503.02844 as one port quotes it (UNVERIFIED), which reaches
      the end value only N steps after the annealing is over.
    """
    who = "schedules.infinite"
    warmup = _checks.whole(who, "warmup_steps", warmup_steps, 0)
    cool = _checks.whole(who, "cooldown_steps", cooldown_steps, 0)
    length = _checks.whole(who, "annealing_steps", annealing_steps, 1)
    start = _checks.start(who, "annealing_start", annealing_start, warmup + cool)
    _checks.falls(who, peak, stable_value, "stable_value")
    _checks.falls(who, stable_value, end_value, "end_value", "stable value")
    if not cool:
        top, stable = _checks.known(peak), _checks.known(stable_value)
        if top is not None and stable is not None and top != stable:
            raise ValueError(
                f"{who}: cooldown_steps=0 leaves no time to fall from the peak {peak}"
                f" to stable_value={stable_value}"
            )
    cooling = _phases.shape_between(who, cooldown, peak, stable_value, "stable_value")
    falling = _phases.shape_between(who, annealing, stable_value, end_value)

    def rate(count: jax.Array) -> jax.Array:
        left = _phases.left(count, start, length)
        annealed = _phases.between(stable_value, end_value, falling(left))
        if not cool:
            return annealed
        left = _phases.left(count, warmup, cool)
        cooled = _phases.between(peak, stable_value, cooling(left))
        return jnp.where(count < start, cooled, annealed)

    return _phases.warmed(who, peak, rate, warmup_steps=warmup, init_value=init_value)
