"""What a law is: its parameters, and the loss that it predicts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

Losses = Callable[[Mapping[str, Any], jax.Array, int | jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
      name: Its name in formulas.
      starts: Values to start a fit from; empty if the loss is linear in the parameter,
        which is then solved for.
      bounds: Least and largest value.
      prior: Mean and standard deviation of what is known before any curve, or None.
      counts_steps: Whether it is a number of steps. Starts, bounds and the prior's mean
        are then parts of the longest curve, and the prior's deviation is that of the
        logarithm.
    """

    name: str
    starts: tuple[float, ...] = ()
    bounds: tuple[float, float] = (0.0, float("inf"))
    prior: tuple[float, float] | None = None
    counts_steps: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """A family of loss curves, one for each schedule, with parameters to fit.

    Attributes:
      name: Name by which `laws.LAWS` makes it.
      parameters: Its parameters.
      losses: From parameters by name, the rate of every update, shape (T,), the steps
        of the warm-up, and some steps, shape (n,), to the loss after so many updates,
        shape (n,). Among the parameters is `peak`, the largest rate of the fit.
      settings: The arguments with which it was made.
      recursive: Whether sums that are updated step by step give the loss, so that
        `probes.track_law` can follow a run.
    """

    name: str
    parameters: tuple[Parameter, ...]
    losses: Losses
    settings: Mapping[str, Any]
    recursive: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)
