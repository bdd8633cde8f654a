"""A schedule made for a law: gradient descent on where and how the rate falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from optlab import schedules
from optlab.laws import _fitted, _predict

# Starts of the descent: the part of the run that decays, and the power of the decay.
STARTS = ((0.2, 1.0), (0.5, 1.5), (0.9, 1.0))

# Least part of the run that decays. A law fitted at whole runs cannot be trusted with
# a fall within a few steps.
LEAST_DECAY = 0.05


def design(
    fitted: _fitted.Fitted,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    end_value: float = 0.0,
    knots: int = 17,
) -> optax.Schedule:
    """Designs the schedule that ends lowest under a law, for a budget.

    First the best of the decays that hold the peak and then fall as a power of what is
    left; then gradient descent on the falls between `knots` steps, none of them
    negative, so that the rate never rises. Exact gradients go through the law's sums.

    Args:
      fitted: The fitted law.
      peak: Rate at the end of the warm-up.
      total_steps: The budget, in updates, the warm-up included.
      warmup_steps: Updates of a linear warm-up from 0.
      end_value: Rate that must be reached at the end.
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
      arXiv:2503.12811. Differs: a few knots in place of one fall for each step.
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
    with jax.enable_x64(True):
        problem = _Design(fitted, peak, total_steps, warmup_steps, end_value, knots)
        values = problem.solve()
    steps, rates = problem.at.tolist(), values.tolist()
    if warmup_steps:
        steps, rates = [0, *steps], [0.0, *rates]
    schedule = schedules.table(rates, steps=steps)
    _predict.predict(fitted, schedule, total_steps)  # Warns if that is far away.
    return schedule


class _Design:
    """The rate at knots that are denser towards the end, where the decay is."""

    def __init__(self, fitted, peak, total, warmup, end, knots):
        self.total, self.peak, self.end = total, peak, end
        left = np.linspace(1, 0, knots) ** 1.5
        self.at = np.unique(np.round(total - left * (total - warmup)).astype(int))
        self.left = (total - self.at) / (total - warmup)
        self.rising = np.linspace(0, peak, warmup, endpoint=False)
        count = jnp.arange(warmup, total)
        names = fitted.law.names
        params = {name: fitted.params[name] for name in names} | {"peak": fitted.peak}

        def loss(values):
            rate = jnp.concatenate(
                [jnp.asarray(self.rising), jnp.interp(count, self.at, values)]
            )
            return fitted.law.losses(params, rate, warmup, jnp.array([total]))[0]

        self.by_falls = jax.jit(jax.value_and_grad(lambda x: loss(self.from_falls(x))))
        self.by_shape = jax.jit(jax.value_and_grad(lambda x: loss(self.from_shape(x))))

    def from_falls(self, falls):
        """Falls are parts of what is between the peak and the end, summing to 1."""
        part = falls / jnp.sum(falls)
        down = jnp.concatenate([jnp.zeros(1), jnp.cumsum(part)])
        return self.peak + (self.end - self.peak) * down

    def from_shape(self, shape):
        """Holds the peak, then falls as a power of the decay's part still to come."""
        decay, power = shape
        u = jnp.clip(self.left / decay, 0.0, 1.0)
        # The logarithm of 0 must not reach the gradient.
        factor = jnp.where(u > 0, jnp.where(u > 0, u, 1.0) ** power, 0.0)
        return self.end + (self.peak - self.end) * factor

    def solve(self) -> np.ndarray:
        bounds = [(LEAST_DECAY, 1.0), (0.25, 4.0)]
        found = [_descend(self.by_shape, start, bounds) for start in STARTS]
        shape = min(found, key=lambda result: result.fun)
        start = -np.diff(np.asarray(self.from_shape(jnp.asarray(shape.x))))
        # A knot without a fall would have no gradient to leave it by.
        start = np.maximum(start, 1e-4 * start.sum())
        falls = _descend(self.by_falls, start / start.sum(), [(0, 1)] * len(start))
        values = self.from_falls(jnp.asarray(falls.x))
        if falls.fun > shape.fun:
            values = self.from_shape(jnp.asarray(shape.x))
        values = np.array(values)
        values[0], values[-1] = self.peak, self.end
        return values


def _descend(function, start, bounds) -> optimize.OptimizeResult:
    def run(x):
        value, gradient = function(x)
        return float(value), np.asarray(gradient)

    return optimize.minimize(
        run, np.array(start), jac=True, method="L-BFGS-B", bounds=bounds
    )
