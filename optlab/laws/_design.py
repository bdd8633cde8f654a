"""A schedule made for a law: gradient descent on where the rate falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from optlab import schedules
from optlab.laws import _fitted, _predict

# Starts of the descent: the part of the run over which the rate falls.
STARTS = (0.2, 0.5, 1.0)


def design(
    fitted: _fitted.Fitted,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    end_value: float = 0.0,
    least_decay: float = 0.2,
    knots: int = 17,
) -> optax.Schedule:
    """Designs the schedule that ends lowest under a law, for a budget.

    Gradient descent on the falls of the rate between `knots` steps, denser towards the
    end, with exact gradients through the law's sums. No fall is negative, so the rate
    never rises, and none is steeper than a straight decay over `least_decay` of the
    run. Without that bound the descent finds a cliff at the very end: the last thing
    that a law fitted on slow decays knows about, and worth less to it than its error.

    Args:
      fitted: The fitted law.
      peak: Rate at the end of the warm-up.
      total_steps: The budget, in updates, the warm-up included.
      warmup_steps: Updates of a linear warm-up from 0.
      end_value: Rate that must be reached at the end.
      least_decay: Part of the run after the warm-up that a decay takes at least.
      knots: Steps between which the rate is a straight line, at least 2.

    Returns:
      Schedule, step -> rate.

    Raises:
      ValueError: If the numbers do not fit together.

    Warns:
      ExtrapolationWarning: As `predict` does.

    Example:
      >>> import numpy as np
      >>> from optlab import laws, schedules
      >>> step, rate = np.arange(10, 401, 10), np.full(400, 0.1)
      >>> curve = laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate)
      >>> fitted = laws.fit(curve, laws.power_law())
      >>> best = laws.design(fitted, peak=0.1, total_steps=400, warmup_steps=20)
      >>> print(best(20), best(400))
      0.1 0.0

    Source:
      Written for this library, after the optimized schedules of Luo et al., 2025,
      arXiv:2503.12811. Differs: a few knots in place of one fall for each step, and a
      bound on how steep they are.
    """
    who = "laws.design"
    if not 0 <= warmup_steps < total_steps or total_steps - warmup_steps < knots:
        raise ValueError(
            f"{who}: {knots} knots do not fit between warmup_steps={warmup_steps} and"
            f" total_steps={total_steps}"
        )
    if knots < 2:
        raise ValueError(f"{who}: knots must be at least 2, got {knots}")
    if not 0 <= end_value < peak:
        raise ValueError(
            f"{who}: end_value={end_value} must be 0 or more and below peak={peak}"
        )
    if not 0 < least_decay <= 1:
        raise ValueError(
            f"{who}: least_decay must lie above 0 and at most at 1, got {least_decay}"
        )
    left = np.append(np.linspace(1, 0, knots) ** 1.5, least_decay)
    span = total_steps - warmup_steps
    at = np.unique(np.round(total_steps - left * span).astype(int))
    problem = _Design(fitted, peak, total_steps, warmup_steps, end_value, at)
    with jax.enable_x64(True):
        values = problem.solve(least_decay)
    steps, rates = problem.at.tolist(), values.tolist()
    if warmup_steps:
        steps, rates = [0, *steps], [0.0, *rates]
    schedule = schedules.table(rates, steps=steps)
    _predict.predict(fitted, schedule, total_steps)  # Warns if that is far away.
    return schedule


class _Design:
    """Falls between knots, as parts of the way from the peak to the end."""

    def __init__(
        self,
        fitted: _fitted.Fitted,
        peak: float,
        total: int,
        warmup: int,
        end: float,
        at: np.ndarray,
    ) -> None:
        self.peak, self.end, self.at = peak, end, at
        self.left = (total - self.at) / (total - warmup)
        rising = np.linspace(0, peak, warmup, endpoint=False)
        count = np.arange(warmup, total)
        params = {**fitted.params, "peak": fitted.peak}

        def loss(falls: jax.Array) -> jax.Array:
            decaying = jnp.interp(count, self.at, self.values(falls))
            rate = jnp.concatenate([jnp.asarray(rising), decaying])
            return fitted.law.losses(params, rate, warmup, jnp.array([total]))[0]

        self.loss = jax.jit(jax.value_and_grad(loss))

    def values(self, falls: jax.Array) -> jax.Array:
        """The rates at the knots."""
        down = jnp.concatenate([jnp.zeros(1), jnp.cumsum(falls)])
        return self.peak + (self.end - self.peak) * down

    def solve(self, least_decay: float) -> np.ndarray:
        """Descends from straight decays and returns the best rates at the knots."""
        steepest = -np.diff(self.left) / least_decay

        def run(falls: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.loss(falls)
            return float(value), np.asarray(gradient)

        whole = {
            "type": "eq",
            "fun": lambda falls: np.sum(falls) - 1,
            "jac": lambda falls: np.ones_like(falls),
        }
        found = []
        for decay in STARTS:
            start = -np.diff(np.minimum(self.left / max(decay, least_decay), 1.0))
            found.append(
                optimize.minimize(
                    run,
                    start,
                    jac=True,
                    method="SLSQP",
                    bounds=[(0.0, steep) for steep in steepest],
                    constraints=[whole],
                    options={"maxiter": 300, "ftol": 1e-10},
                )
            )
        best = min(found, key=lambda result: result.fun)
        values = np.array(self.values(jnp.asarray(best.x)))
        # Rounding must neither lift a rate above the one before nor miss the ends.
        values = np.minimum.accumulate(np.clip(values, self.end, self.peak))
        values[0], values[-1] = self.peak, self.end
        return values
