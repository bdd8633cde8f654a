"""One line of text for an optimizer with its schedule.

    OPTIMIZER[:key=value,...]+SCHEDULE[:key=value,...][@STEPS]

    adamw+cosine
    muon:learning_rate=0.02,rest.learning_rate=0.003+wsd:decay_steps=40@160

Keys are the keyword arguments of the optimizer and of the schedule; values are an
integer, a float, true, false, none or a name. The schedule is built for the run's own
length and handed to the optimizer as its learning rate: its peak is the optimizer's
`learning_rate`. An optimizer that leaves some parameters to another one (Muon) takes
that one's name as `rest=` and its settings as `rest.key=`; the rest follows the same
schedule, scaled to a peak of its own. The name of a link, such as `clip_coordinates`,
stands for SGD with momentum and that link in its place.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from optlab.lab import parts, settings, tuned
from optlab.lab.parts import ChainError, Part
from optlab.lab.settings import Value

# The optimizer of the parameters that another optimizer leaves to `rest`.
REST = "adamw"


@dataclasses.dataclass(frozen=True)
class Chain:
    """An optimizer, its schedule and, if the text gives one, the number of steps.

    Attributes:
      optimizer: The optimizer; settings of its rest begin with 'rest.'.
      schedule: The schedule.
      steps: Length of the run, or None.
    """

    optimizer: Part
    schedule: Part
    steps: int | None = None

    def __str__(self) -> str:
        steps = "" if self.steps is None else f"@{self.steps}"
        return f"{self.optimizer}+{self.schedule}{steps}"

    @property
    def name(self) -> str:
        """The chain without its settings, as in 'muon+wsd'."""
        return f"{self.optimizer.name}+{self.schedule.name}"

    @property
    def length(self) -> int:
        """The number of steps, which an explicit chain has."""
        if self.steps is None:
            raise ChainError(f"chain '{self}' does not say its number of steps")
        return self.steps

    @property
    def eval_params(self) -> Callable[..., Any] | None:
        """From state and parameters to those to evaluate, or None for the latter."""
        return self.optimizer.row.eval_params

    @property
    def has_rest(self) -> bool:
        """Whether the optimizer leaves some parameters to another one."""
        return "rest" in self.optimizer.parameters

    @property
    def rest(self) -> Part:
        """The optimizer of the parameters that the first one leaves."""
        given = self.optimizer.settings
        own = {
            key.removeprefix("rest."): value
            for key, value in given.items()
            if key.startswith("rest.")
        }
        return Part("optimizers", settings.spell(given.get("rest", REST)), own)

    def replace(self, **changes: Value) -> "Chain":
        """Returns the chain with other settings of its optimizer.

        >>> str(parse("sgd+linear").replace(learning_rate=0.1))
        'sgd:learning_rate=0.1+linear'

        Args:
          **changes: The settings; a learning rate may be a traced number.

        Returns:
          The chain.
        """
        merged = {**self.optimizer.settings, **changes}
        optimizer = dataclasses.replace(self.optimizer, settings=merged)
        return dataclasses.replace(self, optimizer=optimizer)

    def explicit(self, steps: int | None = None, workload: str = "") -> "Chain":
        """Returns the chain with the settings that its text left out written down.

        Learning rates come from `tuned`, for this workload, or else from the
        catalogue, as other settings do; a warm-up is 5 % of the steps and a decay 40 %.

        >>> str(parse("adamw:learning_rate=0.1+wsd").explicit(100))
        'adamw:learning_rate=0.1+wsd:warmup_steps=5,decay_steps=40@100'

        Args:
          steps: Steps of the run, if the text does not say them.
          workload: The workload whose tuned learning rates to use.

        Returns:
          The chain, whole: a run of it depends on no other default.

        Raises:
          ChainError: If there is no number of steps, or it is not positive.
        """
        steps = self.steps if self.steps is not None else steps
        if steps is None or steps < 1:
            raise ChainError(f"chain '{self}': steps must be at least 1, got {steps}")
        optimizer = self.optimizer.explicit(_implied(self, workload))
        peak = optimizer.settings["learning_rate"]
        return Chain(optimizer, parts.whole(self.schedule, peak, steps), steps)

    def build(
        self, steps: int | None = None, mesh: jax.sharding.Mesh | None = None
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Builds the optimizer and the schedule that it follows.

        >>> _, schedule = parse("sgd:learning_rate=0.5+linear:warmup_steps=0").build(10)
        >>> [round(float(schedule(t)), 2) for t in (0, 5, 10)]
        [0.5, 0.25, 0.0]

        Args:
          steps: Steps of the run, if the text does not say them.
          mesh: Mesh over whose axes the optimizer spreads its work on matrices, if the
            catalogue knows how.

        Returns:
          The transformation, and the schedule of its learning rate.

        Raises:
          ChainError: If the optimizer or the schedule refuses a setting.
        """
        chain = self.explicit(steps)
        peak = chain.optimizer.settings["learning_rate"]
        try:
            schedule = parts.build_schedule(chain.schedule, peak, chain.length)
            return _build(chain, schedule, mesh), schedule
        except (TypeError, ValueError) as error:
            raise ChainError(f"chain '{self}': {error}") from error

    def build_at(
        self, learning_rate: Any, mesh: jax.sharding.Mesh | None = None
    ) -> optax.GradientTransformation:
        """Builds the optimizer of an explicit chain at another learning rate.

        Args:
          learning_rate: The peak, which may be traced and may be zero; the peak of a
            rest keeps its ratio to it.
          mesh: As for `build`.

        Returns:
          The transformation.
        """
        schedule = parts.build_schedule(self.schedule, learning_rate, self.length)
        return _build(self, schedule, mesh)


def parse(text: str) -> Chain:
    """Reads a chain from its text.

    >>> chain = parse("muon:learning_rate=0.02,nesterov=false+wsd:decay_steps=40@160")
    >>> chain.optimizer.settings
    {'learning_rate': 0.02, 'nesterov': False}
    >>> chain.name, chain.steps
    ('muon+wsd', 160)

    Args:
      text: The chain, as the module's documentation says.

    Returns:
      The chain, with the settings of the text alone.

    Raises:
      ChainError: If the text cannot be read, or a name or a key is unknown; the
        message has the nearest names.
    """
    try:
        return _read_chain(text.strip())
    except ValueError as error:
        raise ChainError(f"chain '{text}': {error}") from None


def _read_chain(text: str) -> Chain:
    body, at, steps = text.partition("@")
    if at and not (re.fullmatch(r"[0-9]+", steps) and int(steps)):
        raise ValueError(
            f"after '@' comes the number of steps, at least 1; got '{steps}'"
        )
    # A plus sign before a digit belongs to an exponent, as in 1e+3.
    pieces = re.split(r"\+(?!\d)", body)
    if len(pieces) != 2 or not all(pieces):
        raise ValueError("write an optimizer, '+' and a schedule, as in 'adamw+cosine'")
    optimizer = parts.read("optimizers", pieces[0])
    schedule = parts.read("schedules", pieces[1])
    chain = Chain(optimizer, schedule, int(steps) if at else None)
    _check_optimizer(chain)
    peak = settings.spell(schedule.settings.get(schedule.peak, "RATE"))
    parts.check_schedule(
        schedule,
        f"is the optimizer's; write '{optimizer.name}:learning_rate={peak}'",
        "is the run's; write '@STEPS' at the end",
    )
    return chain


def _check_optimizer(chain: Chain) -> None:
    optimizer, own = chain.optimizer, dict(chain.optimizer.settings)
    parts.require_inputs(optimizer)
    if chain.has_rest:
        own = {
            key: value
            for key, value in own.items()
            if key != "rest" and not key.startswith("rest.")
        }
        rest = chain.rest
        if "rest" in rest.parameters:
            raise ValueError(f"{rest.name} takes matrices only and cannot be the rest")
        parts.require_inputs(rest, is_rest=True)
        settings.check(rest.name, rest.row.build, rest.settings)
    settings.check(optimizer.name, optimizer.row.build, own)


def _implied(chain: Chain, workload: str) -> dict[str, Value]:
    """The learning rates, and the settings of the rest, that a text left out."""
    optimizer = chain.optimizer
    known = tuned.find(workload, optimizer.name, chain.schedule.name)
    own = optimizer.row.defaults["learning_rate"]
    implied: dict[str, Value] = {"learning_rate": known.get("learning_rate", own)}
    if chain.has_rest:
        own = chain.rest.row.defaults["learning_rate"]
        # A rate tuned for one optimizer says nothing about another one.
        known = known if chain.rest.name == REST else {}
        rate = known.get("rest.learning_rate", own)
        rest = chain.rest.explicit({"learning_rate": rate}).settings
        implied |= {f"rest.{key}": value for key, value in rest.items()}
    return implied


def _build(
    chain: Chain, schedule: optax.Schedule, mesh: jax.sharding.Mesh | None
) -> optax.GradientTransformation:
    given = dict(chain.optimizer.settings)
    row, placed = chain.optimizer.row, {}
    if mesh is not None and row.on_mesh is not None:
        placed = row.on_mesh(mesh, mesh.axis_names)
    peak: Any = given.pop("learning_rate")
    if not chain.has_rest:
        optimizer = Part("optimizers", chain.optimizer.name, given)
        return optimizer.build(schedule, **placed)
    own = {k: v for k, v in given.items() if k != "rest" and not k.startswith("rest.")}
    inner = dict(chain.rest.settings)
    rest_peak: Any = inner.pop("learning_rate")
    # The same shape, scaled to a peak of its own.
    rest = Part("optimizers", chain.rest.name, inner).build(
        lambda count: rest_peak / peak * schedule(count)
    )
    optimizer = Part("optimizers", chain.optimizer.name, own)
    return optimizer.build(schedule, rest=rest, **placed)
