"""Which of several schedules a law expects to end lowest."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import optax

from optlab.laws import _fitted, _predict


class Ranked(NamedTuple):
    """A schedule and the loss that it is expected to end with.

    Attributes:
      name: The schedule's name.
      loss: Its predicted final loss.
      low: Lower end of the prediction's 90 % interval.
      high: Upper end.
    """

    name: str
    loss: float
    low: float
    high: float


class Choice(NamedTuple):
    """The schedule that a law prefers, and how sure that is.

    Attributes:
      best: The schedule with the lowest predicted final loss.
      rivals: Names of others whose predicted loss is within the law's own error of it:
        the law cannot tell them from the best one.
    """

    best: Ranked
    rivals: tuple[str, ...]


def rank(
    fitted: _fitted.Fitted,
    schedules: Mapping[str, optax.Schedule | np.ndarray],
    steps: int,
) -> list[Ranked]:
    """Orders schedules by the loss that a law expects at the end.

    Args:
      fitted: The fitted law.
      schedules: Schedules by name, or the rates of every update.
      steps: The budget, in updates.

    Returns:
      The schedules, lowest predicted loss first.

    Raises:
      ValueError: If there is no schedule or one gives no usable rate.

    Warns:
      ExtrapolationWarning: As `predict` does.

    Example:
      >>> import numpy as np
      >>> from optlab import laws, schedules
      >>> step, rate = np.arange(10, 401, 10), np.full(400, 0.1)
      >>> curve = laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate)
      >>> fitted = laws.fit(curve, laws.power_law())
      >>> names = {"linear": schedules.linear(0.1, total_steps=400),
      ...          "constant": schedules.constant(0.1)}
      >>> [row.name for row in laws.rank(fitted, names, 400)]
      ['constant', 'linear']

    Source:
      Written for this library. This baseline law knows no annealing; others reward it.
    """
    if not schedules:
        raise ValueError("laws.rank: no schedule; give one or more by name")
    found = []
    for name, schedule in schedules.items():
        end = _predict.predict(fitted, schedule, steps)
        found.append(
            Ranked(name, *(float(x[-1]) for x in (end.loss, end.low, end.high)))
        )
    return sorted(found, key=lambda row: row.loss)


def choose(
    fitted: _fitted.Fitted,
    schedules: Mapping[str, optax.Schedule | np.ndarray],
    steps: int,
) -> Choice:
    """Chooses the schedule with the lowest predicted loss under a budget.

    Args:
      fitted: The fitted law.
      schedules: Candidates by name.
      steps: The budget, in updates.

    Returns:
      The choice, and the rivals that the law cannot tell from it: those whose predicted
      loss lies inside the winner's interval.

    Raises:
      ValueError: As `rank` does.

    Warns:
      ExtrapolationWarning: As `predict` does.

    Example:
      >>> import numpy as np
      >>> from optlab import laws, schedules
      >>> step, rate = np.arange(10, 401, 10), np.full(400, 0.1)
      >>> curve = laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate)
      >>> fitted = laws.fit(curve, laws.power_law())
      >>> names = {"linear": schedules.linear(0.1, total_steps=400),
      ...          "constant": schedules.constant(0.1)}
      >>> laws.choose(fitted, names, 400).best.name
      'constant'

    Source:
      Written for this library.
    """
    best, *others = rank(fitted, schedules, steps)
    return Choice(best, tuple(row.name for row in others if row.loss < best.high))
