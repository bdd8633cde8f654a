"""The loss that a fitted law predicts for a schedule."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from optlab.laws import _curve, _fitted, _sums

# Beyond this multiple of the fitted steps a prediction is a guess. Curves end up to one
# sample before their run does, hence the twentieth.
FAR, SHORT = 3, 1.05


class ExtrapolationWarning(UserWarning):
    """A law is asked about runs unlike those that it was fitted to."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted loss curve.

    Attributes:
      step: Updates applied, 1, 2, ..., shape (n,), int64.
      loss: Predicted loss after them, shape (n,), float64.
      low: Lower end of the 90 % interval of a measured loss, shape (n,).
      high: Upper end.
    """

    step: np.ndarray
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray


def predict(
    fitted: _fitted.Fitted,
    schedule: optax.Schedule | np.ndarray,
    steps: int,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Prediction:
    """Predicts the loss curve of a schedule.

    The interval holds what the curves leave open of the parameters, and twice the
    scatter of the curves round the law, which is how far unseen curves were off on the
    runs on which the default law was chosen.

    Args:
      fitted: The fitted law.
      schedule: From a step to its rate, or the rate of every update, shape (T,).
      steps: Updates to predict, at most T.
      facts: What the run shares with those fitted, as for `fit`.

    Returns:
      The prediction for 1, 2, ..., steps updates.

    Raises:
      ValueError: If there are no steps or not enough rates, or a rate is negative or
        not finite.

    Warns:
      ExtrapolationWarning: If there are more than three times as many steps as in the
        longest curve fitted, the peak differs by more than 1 %, or facts differ.

    Example:
      >>> import numpy as np
      >>> from optlab import laws, schedules
      >>> rate = np.full(400, 0.1)
      >>> step = np.arange(10, 401, 10)
      >>> curve = laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate)
      >>> fitted = laws.fit(curve, laws.power_law())
      >>> print(laws.predict(fitted, schedules.constant(0.1), 900).loss[-1].round(3))
      2.105

    Source:
      Written for this library.
    """
    rate = rates_of("laws.predict", schedule, steps)
    _warn(fitted, rate, facts or {})
    step = np.arange(1, steps + 1)
    loss, low, high = _fitted.losses_at(fitted, rate, _sums.warmup_of(rate), step)
    return Prediction(step, loss, low, high)


def rates_of(who: str, schedule: optax.Schedule | np.ndarray, steps: int) -> np.ndarray:
    """The rate of each of the first updates, shape (steps,), float64."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"{who}: steps must be a whole number above 0, got {steps!r}")
    if callable(schedule):
        every = jax.vmap(schedule)(np.arange(steps, dtype=np.int32))
        rate = np.asarray(every, np.float64)
    else:
        rate = np.asarray(schedule, np.float64)
    if rate.ndim != 1 or rate.size < steps:
        raise ValueError(
            f"{who}: rates have shape {rate.shape}; one for each of {steps} updates is"
            " wanted"
        )
    rate = rate[:steps]
    bad = ~(np.isfinite(rate) & (rate >= 0))
    if bad.any() or not rate.any():
        at = int(np.argmax(bad)) if bad.any() else 0
        raise ValueError(
            f"{who}: the rate of update {at} is {rate[at]}; rates are finite, not below"
            " 0, and not all 0"
        )
    return rate


def errors(predicted: Any, actual: Any) -> dict[str, float]:
    """Measures how well a curve was predicted.

    Args:
      predicted: Predicted losses, shape (n,).
      actual: Measured losses at the same steps, shape (n,), positive.

    Returns:
      `r2` of the losses, and relative errors as fractions: `mean_relative_error`,
      `max_relative_error` and `final_relative_error`, all three without their sign.

    Raises:
      ValueError: If the shapes differ or a loss is not positive and finite.

    Example:
      >>> from optlab import laws
      >>> laws.errors([2.0, 1.0, 1.5], [2.0, 1.0, 2.0])["final_relative_error"]
      0.25
    """
    predicted = np.asarray(predicted, np.float64)
    actual = np.asarray(actual, np.float64)
    if predicted.shape != actual.shape or actual.ndim != 1 or not actual.size:
        raise ValueError(
            f"laws.errors: shapes {predicted.shape} and {actual.shape}; one axis of the"
            " same length is wanted"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(actual).all()):
        raise ValueError("laws.errors: a loss is not finite")
    if not (actual > 0).all():
        raise ValueError("laws.errors: a measured loss is not positive")
    relative = np.abs(predicted - actual) / actual
    spread = np.sum((actual - actual.mean()) ** 2)
    missed = np.sum((predicted - actual) ** 2)
    # A flat curve has no spread to explain.
    explained = 1 - missed / spread if spread > 0 else float(missed == 0)
    return {
        "r2": float(explained),
        "mean_relative_error": float(relative.mean()),
        "max_relative_error": float(relative.max()),
        "final_relative_error": float(relative[-1]),
    }


def compare(fitted: _fitted.Fitted, curve: _curve.Curve) -> Prediction:
    """Predicts a measured curve at its own steps.

    Args:
      fitted: The fitted law.
      curve: The curve; its losses are not looked at.

    Returns:
      The prediction at `curve.step`.

    Warns:
      ExtrapolationWarning: As `predict` does.

    Example:
      >>> import numpy as np
      >>> from optlab import laws
      >>> rate = np.full(400, 0.1)
      >>> step = np.arange(10, 401, 10)
      >>> curve = laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate)
      >>> found = laws.compare(laws.fit(curve, laws.power_law()), curve)
      >>> laws.errors(found.loss, curve.loss)["max_relative_error"] < 1e-4
      True

    Source:
      Written for this library.
    """
    last = int(curve.step[-1])
    rate = rates_of("laws.compare", curve.rate, last)
    _warn(fitted, rate, {})
    step = np.maximum(curve.step, 1)
    loss, low, high = _fitted.losses_at(fitted, rate, curve.warmup_steps, step)
    return Prediction(curve.step, loss, low, high)


def _warn(fitted: _fitted.Fitted, rate: np.ndarray, facts: Mapping[str, Any]) -> None:
    found = []
    if rate.size > SHORT * FAR * fitted.steps:
        found.append(
            f"{rate.size} steps are more than {FAR} times the {fitted.steps} of the"
            " fit; fit a longer run"
        )
    peak = rate.max()
    if abs(peak - fitted.peak) > 0.01 * fitted.peak:
        found.append(
            f"the peak is {peak:.3g} and that of the fit {fitted.peak:.3g}; a law holds"
            " for one peak"
        )
    for key in facts.keys() & fitted.facts.keys():
        if facts[key] != fitted.facts[key]:
            found.append(
                f"{key} is {facts[key]!r} and was {fitted.facts[key]!r} in the fit"
            )
    for text in found:
        message = f"the {fitted.law.name} law: {text}"
        warnings.warn(message, ExtrapolationWarning, stacklevel=3)
