"""A law with parameters that a fit has found."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.laws import _law

# Standard deviations on each side of a 90 % interval.
SIDE = 1.645

# On the runs on which the default law was chosen, losses of unseen curves lay about
# twice as far from the prediction as those of the fitted ones.
UNSEEN = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A law, its parameters, and how well they are known.

    Attributes:
      law: The law.
      params: Its parameters by name, in units of loss, rate and steps.
      intervals: For each parameter the ends of its 90 % interval.
      warnings: What to know before trusting it, such as parameters that the curves do
        not tell.
      peak: Largest rate of the curves.
      steps: Updates of the longest curve.
      scatter: Typical relative distance of the curves from the law.
      covariance: Covariance of the parameters, in the order of `law.names`.
      objective: Sum of Huber's function of log loss - log prediction.
      facts: What else was the same in all runs, such as batch and model size.
    """

    law: _law.Law
    params: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    warnings: tuple[str, ...]
    peak: float
    steps: int
    scatter: float
    covariance: np.ndarray
    objective: float
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def losses_at(
    fitted: Fitted, rate: np.ndarray, warmup: int, step: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the losses after some numbers of updates, and the ends of an interval."""
    values = np.array([fitted.params[name] for name in fitted.law.names])
    with jax.enable_x64(True):
        function = _with_gradient(fitted.law.losses, fitted.law.names)
        arrays = (jnp.asarray(x) for x in (values, fitted.peak, rate, step))
        loss, gradient = map(np.asarray, function(*arrays, warmup))
    variance = np.einsum("tj,jk,tk->t", gradient, fitted.covariance, gradient)
    wide = (UNSEEN * fitted.scatter * loss) ** 2 + np.maximum(variance, 0.0)
    side = SIDE * np.sqrt(wide)
    return loss, loss - side, loss + side


@functools.lru_cache(maxsize=64)
def _with_gradient(losses: _law.Losses, names: tuple[str, ...]):
    def run(values, peak, rate, step, warmup):
        def of(values):
            params = dict(zip(names, values, strict=True), peak=peak)
            found = losses(params, rate, warmup, step)
            return found, found

        gradient, loss = jax.jacfwd(of, has_aux=True)(values)
        return loss, gradient

    return jax.jit(run)
