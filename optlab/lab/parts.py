"""A part of a chain: a row of the catalogue with the settings that text gives it."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import optax

from optlab import catalog
from optlab.lab import rate_file, settings
from optlab.lab.settings import Value

# Phases that a chain's text leaves out: their fraction of the run, their least steps.
PHASES = {
    "warmup_steps": (0.05, 0),
    "decay_steps": (0.4, 1),
    "cooldown_steps": (0.15, 1),
    "annealing_steps": (0.2, 1),
}

# The same for what is there more than once.
SERIES = {"boundaries": (0.5, 0.75), "cycle_steps": (0.5, 0.5)}

# A schedule without a warm-up of its own: it gets one.
WARMUP = ("warmup_steps", 0)

# Extra arguments that the training step gives to every transformation.
SUPPLIED = ("value", "grad", "value_fn", "loss_fn", "key")

# What a method makes itself of `loss_fn` and `key`, if it sees all parameters.
ESTIMATED = ("hessian_diag",)

# Defaults of the catalogue that a chain does not take: it has rules of its own.
OWN_RULE = ("learning_rate", "peak", "total_steps")


class ChainError(ValueError):
    """A chain's text cannot be read, or asks for what does not exist."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A row of the catalogue with the settings given to it.

    Attributes:
      room: "optimizers" or "schedules".
      name: Name of the row.
      settings: Settings by key.
    """

    room: str
    name: str
    settings: Mapping[str, Value]

    @property
    def row(self) -> catalog.Row:
        """The catalogue's row; a file of rates has one too, a link stands for SGD."""
        rows = {row.name: row for row in catalog.rows(self.room)}
        if self.room == "schedules":
            rows["file"] = rate_file.ROW
        if self.name not in rows:
            kind = self.room.removesuffix("s")
            raise ChainError(settings.unknown(kind, self.name, rows))
        return rows[self.name].whole()

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the row's function, in its own order."""
        return inspect.signature(self.row.build).parameters

    @property
    def peak(self) -> str:
        """What a schedule calls its peak: its first parameter."""
        return next(iter(self.parameters))

    def explicit(self, more: Mapping[str, Value]) -> "Part":
        """Returns the part with settings that its text left out.

        Args:
          more: Settings that come before the catalogue's.

        Returns:
          The part; settings of its own text are kept.
        """
        defaults = {
            key: value
            for key, value in self.row.defaults.items()
            if key not in OWN_RULE and isinstance(value, int | float | str | None)
        }
        merged = {**more, **defaults, **more, **self.settings}  # `more` stands first
        return Part(self.room, self.name, merged)

    def build(self, *arguments: Any, **more: Any) -> Any:
        """Builds what the row stands for.

        Args:
          *arguments: Arguments that come first.
          **more: Arguments beside the settings.

        Returns:
          A transformation or a schedule.
        """
        function = self.row.build
        return function(
            *arguments, **settings.keywords(function, self.settings), **more
        )

    def __str__(self) -> str:
        pairs = [f"{key}={settings.spell(v)}" for key, v in self.settings.items()]
        return f"{self.name}:{','.join(pairs)}" if pairs else self.name


def read(room: str, text: str) -> Part:
    """Reads NAME[:key=value,...]; the name and the keys may still be unknown.

    Args:
      room: "optimizers" or "schedules".
      text: The text.

    Returns:
      The part, with the settings of the text alone.

    Raises:
      ValueError: If the text cannot be read.
    """
    name, colon, pairs = text.partition(":")
    found: dict[str, Value] = {}
    for pair in pairs.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"settings are key=value, with commas between; got '{pair}'"
            )
        if key in found:
            raise ValueError(f"'{key}' is given twice")
        found[key] = settings.read(key, value)
    return Part(room, name.strip(), found)


def require_inputs(optimizer: Part, *, is_rest: bool = False) -> None:
    """Refuses an optimizer whose needs no chain can meet.

    Args:
      optimizer: The optimizer; of its row, `needs` and what `build` requires count.
      is_rest: Whether it is the rest of another one and sees some parameters only.

    Raises:
      ValueError: If its update needs what the training step does not give, or text
        cannot give an argument that it requires.

    Example:
      >>> require_inputs(Part("optimizers", "sophia", {}))  # hessian_diag is estimated
      >>> try:
      ...     require_inputs(Part("optimizers", "kfac", {}))
      ... except ValueError as error:
      ...     print(str(error).partition(";")[0])
      kfac needs layer_stats at each update, which the training step does not give
    """
    row = optimizer.row
    given = SUPPLIED if is_rest else (*SUPPLIED, *ESTIMATED)
    absent = [need for need in row.needs if need not in given]
    reasons = []
    if absent:
        whom = " to a rest" if set(absent) <= set(ESTIMATED) else ""
        reasons.append(
            f"{' and '.join(absent)} at each update, which the training step does not"
            f" give{whom}"
        )
    known = settings.settable(row.build)
    unsaid = [
        key
        for key, parameter in optimizer.parameters.items()
        if parameter.default is parameter.empty and key not in known
    ]
    if unsaid:
        reasons.append(f"the argument {' and '.join(unsaid)}, which text cannot give")
    if not reasons:
        return
    remedy = "in a loop of your own" if absent else "with optlab.lab.train"
    made = ", where optlab.lab.capture makes layer_stats"
    raise ValueError(
        f"{row.name} needs {', and '.join(reasons)}; build optlab.optimizers.{row.name}"
        f" in Python and train {remedy}{made if 'layer_stats' in absent else ''}"
    )


def schedule(
    text: str, peak: float, steps: int, *, warmup_steps: int | None = None
) -> optax.Schedule:
    """Builds a schedule from its own part of a chain's text.

    >>> wsd = schedule("wsd:decay_steps=4,decay=linear", 0.5, 10, warmup_steps=0)
    >>> [round(float(wsd(t)), 3) for t in (0, 6, 8, 10)]
    [0.5, 0.5, 0.25, 0.0]

    Args:
      text: SCHEDULE[:key=value,...].
      peak: The peak.
      steps: Steps of the run.
      warmup_steps: Length of the warm-up, if the text does not say it; None is 5 % of
        the steps.

    Returns:
      The schedule.

    Raises:
      ChainError: If the text cannot be read, or the schedule refuses a setting.
    """
    try:
        part = read("schedules", text.strip())
        check_schedule(part, "is given apart", "is given apart")
        if warmup_steps is not None and "warmup_steps" in part.parameters:
            given = {"warmup_steps": warmup_steps, **part.settings}
            part = dataclasses.replace(part, settings=given)
        return build_schedule(whole(part, peak, steps), peak, steps)
    except (TypeError, ValueError) as error:
        raise ChainError(f"schedule '{text}': {error}") from error


def check_schedule(schedule: Part, peak: str, steps: str) -> None:
    """Checks the settings of a schedule.

    Args:
      schedule: The schedule, with the settings of its text alone.
      peak: Where its peak is given, for a message that goes on from 'the peak'.
      steps: The same for the length of the run.

    Raises:
      ValueError: If a setting is unknown, of the wrong kind or given elsewhere.
    """
    given = schedule.settings
    if schedule.peak != "peak":
        raise ValueError(
            f"text cannot give the {schedule.peak} that {schedule.name} is made of; use"
            f" optlab.schedules.{schedule.name}"
        )
    if schedule.peak in given:
        raise ValueError(f"the {schedule.peak} {peak}")
    if "total_steps" in given:
        raise ValueError(f"total_steps {steps}")
    settings.check(schedule.name, schedule.row.build, given)


def whole(schedule: Part, peak: Any, steps: int) -> Part:
    """Returns a schedule with all that its text left out.

    Args:
      schedule: The schedule.
      peak: The run's peak; the catalogue's other rates are scaled with it.
      steps: Steps of the run; phases are fractions of it.
    """
    own: dict[str, Value] = {}
    for key, (fraction, least) in PHASES.items():
        if _is_open(key, schedule.parameters):
            own[key] = max(least, round(fraction * steps))
    for key, fractions in SERIES.items():
        if key in schedule.parameters:
            own[key] = tuple(max(1, round(x * steps)) for x in fractions)
    defaults = schedule.row.defaults
    own |= {
        key: peak / defaults["peak"] * value
        for key, value in defaults.items()
        if key.endswith("_value")
    }
    if schedule.row is rate_file.ROW:
        # A run with another content of the file is another run.
        own["digest"] = rate_file.digest_of(str(schedule.settings.get("path", "")))
    return schedule.explicit(own)


def _is_open(key: str, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a schedule needs a phase, or would go without a warm-up."""
    if key not in parameters:
        return False
    default = parameters[key].default
    return default is inspect.Parameter.empty or (key, default) == WARMUP


def build_schedule(schedule: Part, peak: Any, steps: int) -> optax.Schedule:
    """Builds a schedule that is whole.

    Args:
      schedule: The schedule.
      peak: Its peak.
      steps: Steps of the run.

    Returns:
      The schedule.
    """
    total = {"total_steps": steps} if "total_steps" in schedule.parameters else {}
    return schedule.build(peak, **total)
