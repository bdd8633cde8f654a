"""What a schedule amounts to, in a few numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.schedules import _checks


@dataclasses.dataclass(frozen=True)
class Description:
    """A schedule in a few numbers; `print` writes them as a table.

    The rates are those of the updates 0 ... steps - 1.

    Attributes:
      steps: Number of updates.
      peak: Largest rate.
      peak_step: First step at the peak.
      decay_start: Last step at the peak; None if the rate does not fall after it. A
        rate that leaves its peak smoothly does so when float32 can tell.
      half_life: Steps from `decay_start` to the first rate of at most half the peak;
        None if there is none up to `steps`.
      end_value: Rate at the step `steps`, at which the next update would be made.
      area: S1, the sum of all rates.
      annealing_area: S2, what the fall of the rate is worth to the annealing law: the
        sum over all steps i of m_i = decay m_{i-1} + (rate_{i-1} - rate_i), where
        steps before `peak_step` count as steps at the peak.
      decay: Decay of m in `annealing_area`.
    """

    steps: int
    peak: float
    peak_step: int
    decay_start: int | None
    half_life: int | None
    end_value: float
    area: float
    annealing_area: float
    decay: float

    def __str__(self) -> str:
        """Writes a line for each number."""
        half = "never" if self.half_life is None else f"{self.half_life} steps"
        start = "never" if self.decay_start is None else f"step {self.decay_start}"
        lines = {
            "updates": f"{self.steps}",
            "peak": f"{self.peak:.4g} from step {self.peak_step}",
            "decay starts": start,
            "half-life": half,
            "end value": f"{self.end_value:.4g}",
            "area S1": f"{self.area:.4g}, {self.area / self.steps:.4g} a step",
            f"area S2 ({self.decay:g})": f"{self.annealing_area:.4g}",
        }
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def describe(
    schedule: optax.Schedule, steps: int, *, decay: float = 0.999
) -> Description:
    """Sums a schedule up: peak, where the decay starts, half-life, end, areas.

    Args:
      schedule: Any schedule, step -> rate.
      steps: Number of updates.
      decay: Decay of the annealing area, in (0, 1].

    Returns:
      The numbers, in double precision.

    Raises:
      ValueError: If there is no step, the decay is out of range, or a rate is not
        finite.
      TypeError: If `steps` is not an integer.

    Example:
      >>> from optlab import schedules
      >>> rate = schedules.linear(1.0, total_steps=100, warmup_steps=20)
      >>> print(schedules.describe(rate, 100))
      updates          100
      peak             1 from step 20
      decay starts     step 20
      half-life        40 steps
      end value        0
      area S1          50, 0.5 a step
      area S2 (0.999)  38.49

    Source:
      S1 and S2: Tissue et al., 2024, arXiv:2408.11029.
    """
    who = "schedules.describe"
    steps = _checks.whole(who, "steps", steps, 1)
    if not 0 < decay <= 1:
        raise ValueError(f"{who}: decay must be in (0, 1], got {decay}")
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(steps + 1)), np.float64)
    if not np.isfinite(rates).all():
        at = int(np.argmin(np.isfinite(rates)))
        raise ValueError(f"{who}: the rate of step {at} is {rates[at]}")
    used, end = rates[:-1], float(rates[-1])
    peak, first = float(used.max()), int(used.argmax())
    last = int(np.flatnonzero(used == peak)[-1])
    after = rates[last:]
    halved = np.flatnonzero(after <= peak / 2)
    return Description(
        steps=steps,
        peak=peak,
        peak_step=first,
        decay_start=last if end < peak else None,
        half_life=int(halved[0]) if halved.size and peak > 0 else None,
        end_value=end,
        area=float(used.sum()),
        annealing_area=_annealing_area(used, first, decay),
        decay=decay,
    )


def _annealing_area(rates: np.ndarray, first: int, decay: float) -> float:
    """Sums, over all drops, the drop times 1 + decay + ... to the last step."""
    drops = -np.diff(rates[first:])
    left = np.arange(drops.size, 0, -1)
    weights = left if decay == 1 else -np.expm1(left * np.log(decay)) / (1 - decay)
    return float(drops @ weights)
