"""The loss that a few measured losses lead to."""

from collections.abc import Sequence

import numpy as np

# Loss of what has diverged: worse than any, and still a number for JSON.
DIVERGED = 1e6

# Fewer losses than this do not fix the three constants of the curve.
LEAST_LOSSES = 4

# A loss this many standard deviations off the smoothed curve may be an outlier.
OUTLIER = 4.0

# Per loss, the fastest decay; a faster one is over before the second loss.
FASTEST = 3.0


def forecast_loss(
    losses: Sequence[float] | np.ndarray, horizon: float, *, rounds: int = 10
) -> float:
    """Fits an exponential to consecutive losses and says where it leads.

    The curve is fitted to the losses at x = 0, 1, ..., outliers left out, and read at
    the horizon:

        loss(x) = a exp(-r x) + c,    1 / (n - 1) <= r <= 3

    For each r the best a and c are known in closed form, so r alone is searched. Below
    its lower bound the n losses cannot tell a curve from a straight line, which would
    lead to any loss, far below 0 too: a fall goes on by at most 0.6 of what it was.

    An outlier lies in the first half, among the worst 3 % (at least one) and four
    standard deviations off a quadratic smoothing spline through running medians of
    five. The standard deviation comes from second differences of the losses.

    Args:
      losses: The losses, at least 4, at equal distances.
      horizon: Where to read the curve, in distances from the first loss; beyond the
        last one.
      rounds: How often outliers are looked for, each time without those found before.

    Returns:
      The loss to expect; 1e6 if one of the losses is not finite.

    Raises:
      ValueError: If there are too few losses, or the horizon lies among them.
      ModuleNotFoundError: If SciPy is not installed.

    Example:
      >>> import numpy as np
      >>> from optlab import controllers
      >>> losses = 0.8 * np.exp(-0.02 * np.arange(100)) + 0.3
      >>> f"{controllers.forecast_loss(losses, 1000):.4f}"
      '0.3000'

    Source:
      Jin et al., AutoLRS, 2021, arXiv:2105.10762; read in the authors' code, the paper
      not verified. Differs from that code: there the worst 3 % go in each of ten rounds
      whether they are outliers or not, and the curve is fitted to the spline. With
      noise of 0.02 on the curve above that makes the median error 0.015; it is 0.010
      here. There r is found by Nelder-Mead from 1 and has no bounds; the forecast of a
      trial of ten losses is then mostly noise.
    """
    y = np.asarray(losses, dtype=np.float64)
    if y.ndim != 1 or len(y) < LEAST_LOSSES:
        raise ValueError(
            f"controllers.forecast_loss: at least {LEAST_LOSSES} losses in a row are"
            f" needed, got shape {y.shape}"
        )
    if not len(y) - 1 <= horizon < np.inf:
        raise ValueError(
            f"controllers.forecast_loss: horizon={horizon} must not lie before the"
            f" last of the {len(y)} losses, at {len(y) - 1}"
        )
    if not np.isfinite(y).all():
        return DIVERGED
    span = len(y) - 1.0
    x, y = _without_outliers(np.arange(float(len(y))), y, rounds)
    rate = _decay_rate(x, y, span)
    (a, c), _ = _least_squares(x, y, rate)
    return float(min(a * np.exp(-rate * horizon) + c, DIVERGED))


def _without_outliers(
    x: np.ndarray, y: np.ndarray, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    from scipy import interpolate, ndimage

    half, scale = x[-1] / 2, np.ptp(y)
    for _ in range(rounds):
        # Of noise of variance v second differences have 6 v; the median absolute value
        # of a normal number is 0.6745 standard deviations.
        noise = np.median(np.abs(np.diff(y, 2))) / 0.6745 / np.sqrt(6)
        medians = ndimage.median_filter(y, 5, mode="nearest")
        # The second summand keeps the spline of exact data from wanting a knot a point.
        allowed = len(x) * noise**2 + 1e-10 * scale**2
        smooth = interpolate.UnivariateSpline(x, medians, k=2, s=allowed)(x)
        away = np.abs(y - smooth)
        worst = np.argsort(-away, kind="stable")[: max(1, int(0.03 * len(x)))]
        out = worst[(x[worst] <= half) & (away[worst] > OUTLIER * noise)]
        if not out.size or len(x) - out.size < LEAST_LOSSES:
            break
        x, y = np.delete(x, out), np.delete(y, out)
    return x, y


def _least_squares(
    x: np.ndarray, y: np.ndarray, rate: float
) -> tuple[tuple[float, float], float]:
    """Returns a and c of the best curve with this decay, and its squared error."""
    basis = np.exp(-rate * x)
    centred = basis - basis.mean()
    a = float(centred @ (y - y.mean()) / (centred @ centred))
    c = float(y.mean() - a * basis.mean())
    return (a, c), float(np.sum((a * basis + c - y) ** 2))


def _decay_rate(x: np.ndarray, y: np.ndarray, span: float) -> float:
    """Finds the decay: on a grid first, for the error may have several minima."""
    from scipy import optimize

    def error(log_rate: float) -> float:
        return _least_squares(x, y, float(np.exp(log_rate)))[1]

    grid = np.linspace(-np.log(span), np.log(FASTEST), 60)
    best = int(np.argmin([error(point) for point in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = optimize.minimize_scalar(
        error, bounds=bounds, method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]
