"""Flags of a command: a set of its own, so that commands do not share or leak any."""

import contextlib
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from optlab.lab import default_race

if TYPE_CHECKING:  # It loads JAX, which help and the catalogue do without.
    from optlab.lab import placement

# Width of the help's lines, their indent aside.
WIDTH = 74


class UsageError(Exception):
    """The command line asks for something that cannot be."""


def flag_set(define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """Makes the set of a command's flags.

    Args:
      define: Adds the command's own flags to a set.

    Returns:
      The set, with the flags that all commands have.
    """
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_boolean(
        "traceback", False, "Show where an error came from.", flag_values=values
    )
    flags.DEFINE_boolean(
        "help", False, "Show this help.", short_name="h", flag_values=values
    )
    return values


def parse(
    program: str,
    values: flags.FlagValues,
    argv: Sequence[str],
    positional: Sequence[str] = (),
) -> types.SimpleNamespace:
    """Reads a command's arguments.

    Args:
      program: The command as it is typed, for messages.
      values: Its flags.
      argv: The arguments; '-' and '_' are the same inside a flag's name, and flags may
        stand before, between and after the other arguments.
      positional: Names of the arguments without a flag, as in ("RUN",); a last one such
        as "CURVE..." takes one or more.

    Returns:
      The value of each flag and of each positional argument, by its name in lower
      case; a list for the name with the dots.

    Raises:
      UsageError: If a flag or a value is wrong.
    """
    values.set_gnu_getopt(True)
    try:
        rest = values([program, *map(_underscored, argv)])[1:]
    except flags.Error as error:
        raise UsageError(str(error)) from None
    given = types.SimpleNamespace(**values.flag_values_dict())
    if not given.help:
        vars(given).update(_positional(positional, rest))
    return given


def _positional(names: Sequence[str], rest: Sequence[str]) -> dict[str, Any]:
    many = bool(names) and names[-1].endswith("...")
    if len(rest) < len(names):
        name = names[len(rest)].removesuffix("...")
        raise UsageError(f"{name} is missing; it comes without a flag")
    if len(rest) > len(names) and not many:
        raise UsageError(f"'{rest[len(names)]}' is no flag; flags begin with '--'")
    values: list[Any] = list(rest)
    if many:
        values[len(names) - 1 :] = [list(rest[len(names) - 1 :])]
    keys = (name.removesuffix("...").lower() for name in names)
    return dict(zip(keys, values, strict=True))


def describe(
    program: str,
    summary: str,
    values: flags.FlagValues,
    examples: str,
    positional: Sequence[str] = (),
) -> str:
    """Writes the help of a command.

    Args:
      program: The command as it is typed.
      summary: What it does, in a line.
      values: Its flags.
      examples: Command lines, with what they do.
      positional: Names of its arguments without a flag, as for `parse`.

    Returns:
      The text.
    """
    usage = " ".join(["usage:", program, *positional, "[FLAGS]"])
    lines = [f"{program}: {summary}", "", usage, "", "flags:"]
    for name in values:
        if name == "h":
            continue
        flag = values[name]
        kind = "N" if flag.flag_type() == "int" else name.rpartition("_")[2].upper()
        lines.append(
            f"  --{name.replace('_', '-')}{'' if flag.boolean else ' ' + kind}"
        )
        # absl adds a line of its own to the help of flags that may be repeated.
        text = (flag.help or "").split(";\n")[0]
        if flag.default not in (None, [], False):
            text += f" Default: {flag.default}."
        lines.append(textwrap.indent(textwrap.fill(text, WIDTH), " " * 6))
    return "\n".join([*lines, "", "examples:", textwrap.indent(examples.strip(), "  ")])


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Turns a ValueError into a `UsageError`: for what depends on the flags alone.

    Yields:
      Nothing.

    Raises:
      UsageError: In place of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def numbers(flag: str, texts: Sequence[str]) -> tuple[float, ...]:
    """Reads a flag that holds numbers with commas between.

    Args:
      flag: The flag as it is typed, for messages.
      texts: What stands between the commas.

    Returns:
      The numbers.

    Raises:
      UsageError: If one of them is not a number above 0.
    """
    found = []
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise UsageError(f"{flag}: '{text}' is not a number above 0")
        found.append(number)
    return tuple(found)


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def define_workload(values: flags.FlagValues) -> None:
    """Defines the flags that name a workload.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_string(
        "workload",
        default_race.WORKLOAD,
        "What to train: shakespeare, digits or digits-vit.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "size",
        "default",
        ["default", "tiny", "lecun"],
        "Size of the workload: tiny is for trying things out; lecun is shakespeare"
        " with Flax's own initial values instead of zeros in the last layers.",
        flag_values=values,
    )


def define_counts(
    values: flags.FlagValues, counts: Mapping[str, tuple[int, str]]
) -> None:
    """Defines flags that hold whole numbers of at least 1.

    Args:
      values: Set that receives them.
      counts: Default and help by name.
    """
    for name, (default, text) in counts.items():
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)


def define_schedule(
    values: flags.FlagValues, *, steps: int | None, peak: float | None
) -> None:
    """Defines the flags that schedules are built with.

    Args:
      values: Set that receives them.
      steps: Steps by default; None asks for them.
      peak: Peak by default; None asks for it.
    """
    flags.DEFINE_integer(
        "steps", steps, "Steps of the run.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float(
        "peak", peak, "Learning rate after the warm-up.", flag_values=values
    )
    flags.register_validator(
        "peak",
        lambda peak: peak is None or 0 < peak < float("inf"),
        "a number above 0 is wanted",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "warmup_steps",
        None,
        "Steps of the linear warm-up of schedules that do not say it themselves; 5 %"
        " of the steps if it is left out.",
        lower_bound=0,
        flag_values=values,
    )


def define_warmup(values: flags.FlagValues) -> None:
    """Defines the flag that tells how long a measured run warmed up.

    Args:
      values: Set that receives it.
    """
    flags.DEFINE_integer(
        "warmup_steps",
        None,
        "Steps of the linear warm-up of curves that begin after it; by default it"
        " lasts to the first sample.",
        lower_bound=0,
        flag_values=values,
    )


def define_losses(values: flags.FlagValues) -> None:
    """Defines the flags that tell which losses of a curve are meant.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_enum(
        "losses",
        "train",
        ["train", "eval"],
        "Training losses, or those of the evaluations.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "window",
        1,
        "Number of consecutive losses to average: those of single batches scatter.",
        lower_bound=1,
        flag_values=values,
    )


def define_mesh(values: flags.FlagValues) -> None:
    """Defines the flags for several devices and several processes.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_string(
        "mesh",
        None,
        "Train on a mesh of all devices: NAME=SIZE,... with the names data (divides the"
        " batch), fsdp (the batch and the parameters) and tp (the parameters), as in"
        " fsdp=4,tp=2.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "distributed",
        False,
        "This is one of several processes. TPU pods, Slurm, Open MPI and Kubernetes are"
        " recognised; elsewhere set JAX_COORDINATOR_ADDRESS (host:port of the first"
        " process), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without --mesh it is"
        " data=ALL.",
        flag_values=values,
    )


def placed(given: types.SimpleNamespace, command: str) -> "placement.Placement":
    """Joins the other processes and makes the mesh, if the flags ask for it.

    Args:
      given: The value of each flag.
      command: The command line, which all processes must share.

    Returns:
      Where to train.

    Raises:
      UsageError: If there can be no such mesh.
      LabError: If the processes do not come together.
    """
    import jax

    from optlab.lab import placement, processes

    mesh = given.mesh
    if given.distributed:
        processes.start()
        processes.require_same(command)
        mesh = mesh or f"data={jax.device_count()}"
    with checked():
        return placement.on_mesh(mesh) if mesh else placement.Placement()


def define_out(values: flags.FlagValues, default: str) -> None:
    """Defines the flag that names the folder for results.

    Args:
      values: Set that receives it.
      default: The folder.
    """
    flags.DEFINE_string(
        "out",
        default,
        "Folder for the results. The same command, given again, goes on there.",
        flag_values=values,
    )
