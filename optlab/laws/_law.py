"""What a law is: its parameters, and the loss that it predicts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


class Form(NamedTuple):
    """What the two sums of a law are made of, and what the second one counts.

        loss = L0 + A S1^-alpha - gain S2
        S1 = sum of (rate / unit)^power
        S2 = sum over the falls of the rate of fall sum_i shares_i (1 - decays_i^n),
             n the updates since the fall

    Attributes:
      unit: Rate that counts as one in S1.
      power: Power of the rates in S1.
      decays: What is left of a fall's delay after one update, shape (r,).
      shares: What falls pay at last, shape (r,).
      gain: Loss for each unit of S2.
    """

    unit: Any = 1.0
    power: Any = 1.0
    decays: Any = (0.0,)
    shares: Any = (1.0,)
    gain: Any = 0.0

    def loss(self, params: Mapping[str, Any], area: Any, fallen: Any) -> Any:
        """Gives the loss at some values of the sums.

        Args:
          params: The law's parameters.
          area: S1, positive.
          fallen: S2.

        Returns:
          The loss, of the same shape.
        """
        decayed = params["A"] * area ** -params["alpha"]
        return params["L0"] + decayed - self.gain * fallen


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
      form: From the parameters to what the law's two sums are made of; None for a law
        that no sums over single updates give.
    """

    name: str
    parameters: tuple[Parameter, ...]
    losses: Losses
    settings: Mapping[str, Any]
    form: Callable[[Mapping[str, Any]], Form] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)
