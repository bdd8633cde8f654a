"""A chain whose learning rate is searched: its text, its optimizer, its controller.

    OPTIMIZER[:key=value,...]+autolrs[:key=value,...][@STEPS]

The keys are the arguments of `controllers.autolrs`. The warm-up rises to the
optimizer's learning rate, and unless the text says otherwise that rate is the middle of
the range to search. A `rest` keeps its ratio to the optimizer's rate.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from optlab import controllers
from optlab.lab import chains, parts, search, settings
from optlab.lab.settings import Value

NAME = "autolrs"

# The range to search: from the optimizer's rate over this to the rate times this.
FACTOR = 30.0

# Length of the first stage, and how many times as long the longest one is. A run too
# short for two such stages has stages of half its steps and uses the validation loss:
# training losses of its short trials forecast little.
FIRST, LONGEST = 1000, 8

TRIALS = 10


@dataclasses.dataclass(frozen=True)
class Searched:
    """A chain whose learning rate is searched.

    Attributes:
      chain: The chain, explicit, with a constant schedule after its warm-up.
      settings: Arguments of `controllers.autolrs` but for those of the chain.
    """

    chain: chains.Chain
    settings: Mapping[str, Value]

    def __str__(self) -> str:
        schedule = parts.Part("controllers", NAME, self.settings)
        return f"{self.chain.optimizer}+{schedule}@{self.chain.steps}"

    def build(
        self, mesh: jax.sharding.Mesh | None = None
    ) -> tuple[optax.GradientTransformationExtraArgs, controllers.Controller]:
        """Builds the optimizer, its rate a number in its state, and the controller.

        Args:
          mesh: Mesh over whose axes the optimizer spreads its work, as for a chain.

        Raises:
          ChainError: If the optimizer or the controller refuses a setting.
        """
        peak: Any = self.chain.optimizer.settings["learning_rate"]
        given: dict[str, Any] = dict(self.settings)
        try:
            controller = controllers.autolrs(
                given.pop("min_rate"),
                given.pop("max_rate"),
                total_steps=self.chain.length,
                warmup_rate=peak,
                **given,
            )
        except (TypeError, ValueError) as error:
            raise chains.ChainError(f"chain '{self}': {error}") from error
        return steerable(self.chain, mesh), controller


def steerable(
    chain: chains.Chain, mesh: jax.sharding.Mesh | None = None
) -> optax.GradientTransformationExtraArgs:
    """Builds a chain's optimizer with its rate as a number in its state.

    Args:
      chain: The chain, explicit; its schedule multiplies the rate.
      mesh: As for `Searched.build`.

    Returns:
      The optimizer, as `search.steerable` makes it; a `rest` keeps its ratio.

    Raises:
      ChainError: If the optimizer refuses a setting.
    """
    peak: Any = chain.optimizer.settings["learning_rate"]
    chain.build()  # Refuses a setting now, and not under a trace.
    return search.steerable(functools.partial(chain.build_at, mesh=mesh), peak)


def with_schedule(text: str, schedule: str) -> str:
    """Gives a chain's text another schedule.

    >>> with_schedule("muon:b1=0.9+wsd:decay_steps=4@20", "autolrs:trials=5")
    'muon:b1=0.9+autolrs:trials=5@20'

    Args:
      text: The chain; it may be an optimizer alone.
      schedule: The schedule.

    Returns:
      The text of the chain.
    """
    optimizer, _, steps = _split(text)
    return f"{optimizer}+{schedule}{steps}"


def asks_for_it(text: str) -> bool:
    """Tells whether a chain's text has this schedule.

    >>> asks_for_it("adamw+autolrs:trials=5@100"), asks_for_it("adamw+cosine")
    (True, False)
    """
    return _split(text)[1].partition(":")[0].strip() == NAME


def plan(text: str, steps: int, workload: str) -> Searched:
    """Reads a chain with this schedule and writes down what its text left out.

    The warm-up is 5 % of the steps, as for other schedules, the first stage 1000
    and the longest 8000. A run of less than 2000 steps is one stage after its warm-up
    (two without), with trials of a twentieth of the run, judged by the validation loss.

    >>> planned = plan("sgd:learning_rate=0.01+autolrs:min_rate=0.001", 400, "digits")
    >>> planned.settings["max_rate"], planned.settings["stage_steps"]
    (0.3, 200)

    Args:
      text: The text.
      steps: Steps of the run, if the text does not say them.
      workload: The workload whose tuned learning rates to use.

    Returns:
      The chain.

    Raises:
      ChainError: If the text cannot be read, or a name or a key is unknown.
    """
    optimizer, schedule, at = _split(text)
    try:
        given = parts.read("controllers", schedule).settings
        settings.check(NAME, controllers.autolrs, given)
        for key, value in given.items():
            _refuse(key, value)
    except ValueError as error:
        raise chains.ChainError(f"chain '{text}': {error}") from None
    warmup = given.get("warmup_steps")
    constant = "constant" if warmup is None else f"constant:warmup_steps={warmup}"
    chain = chains.parse(f"{optimizer}+{constant}{at}").explicit(steps, workload)
    rate: Any = chain.optimizer.settings["learning_rate"]
    trials: Any = given.get("trials", TRIALS)
    first: Any = given.get("stage_steps", min(FIRST, chain.length // 2))
    if "stage_steps" not in given and trials > 0:
        first = int(first // trials * trials)
    own: dict[str, Value] = {
        "min_rate": float(f"{rate / FACTOR:.3g}"),
        "max_rate": float(f"{rate * FACTOR:.3g}"),
        "stage_steps": first,
        "max_stage_steps": LONGEST * first if chain.length >= 2 * FIRST else first,
        "trials": trials,
        "warmup_steps": chain.schedule.settings["warmup_steps"],
    }
    return Searched(chain, {**own, **given})


def _refuse(key: str, value: Value) -> None:
    if key == "warmup_rate":
        raise ValueError("the warmup_rate is the optimizer's learning_rate")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in ("min_rate", "max_rate") and not number:
        raise ValueError(f"{key}={value}: a rate is a number above 0")


def _split(text: str) -> tuple[str, str, str]:
    """Returns optimizer, schedule (maybe empty) and '@STEPS' (maybe empty)."""
    body, at, steps = text.strip().partition("@")
    # A plus sign before a digit belongs to an exponent.
    optimizer, *schedule = re.split(r"\+(?!\d)", body, maxsplit=1)
    return optimizer, "".join(schedule), at + steps
