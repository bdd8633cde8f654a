"""The command line: `optlab race`, `train`, `sweep`, `catalog` and others.

Flax, Orbax and Matplotlib are loaded by the commands that need them, so that help and
the catalogue come at once.
"""

import importlib
import os
import shlex
import sys
import traceback
import types
from collections.abc import Sequence

# Each command is the module of its name in this package, with '_' for '-'.
COMMANDS = {
    "race": "race chains on the same data and seeds: table, picture, report",
    "train": "train one chain, with metrics and checkpoints",
    "sweep": "find a chain's learning rate",
    "refine": "make a better schedule of a run's gradient norms",
    "fit": "fit a law of the loss to measured curves",
    "predict": "the loss that a law foretells, for a schedule or beside a run",
    "design": "the schedule that ends lowest under a law",
    "plot-schedule": "draw learning rates over the steps",
    "probe": "curvature and gradient noise at a run's checkpoints",
    "plan": "memory, work and traffic of a step, before there is a mesh",
    "catalog": "list what there is: optimizers, schedules, kernels",
}

USAGE = f"""\
optlab: optimizers, schedules and kernels for JAX, and races between them

usage: optlab COMMAND [FLAGS]

commands:
{chr(10).join(f"  {name:15}{summary}" for name, summary in COMMANDS.items())}

`optlab COMMAND --help` tells a command's flags, with examples. Start with

  optlab race
"""

# What the extra `lab` installs, by the names that are imported.
LAB_PACKAGES = ("absl", "flax", "matplotlib", "orbax", "rich", "scipy", "sklearn")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: Arguments, without the program's name; None for those of the process.

    Returns:
      The exit code: 0, 1 if a run fails, 2 if the command line is wrong, 130 after
      Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say("optlab: stopped; what is saved is kept, the same command continues")
        return _leave(130)
    except BrokenPipeError:
        # The reader, as in `optlab catalog | head`, has enough. Python flushes the
        # output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    try:
        from optlab.lab import settings

        if name not in COMMANDS:
            _say(f"optlab: {settings.unknown('command', name, COMMANDS)}")
            return 2
        command = importlib.import_module(f"optlab.lab.cli.{name.replace('-', '_')}")
        return _run(name, command, rest)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in LAB_PACKAGES:
            raise
        _say(f"optlab: no package '{package}'; pip install 'optlab-jax[lab]'")
        return 1


def _run(name: str, command: types.ModuleType, argv: list[str]) -> int:
    from optlab.lab.cli import options

    program = f"optlab {name}"
    flags = options.flag_set(command.define)
    names = getattr(command, "POSITIONAL", ())  # of arguments without a flag
    try:
        given = options.parse(program, flags, argv, names)
        if given.help:
            about = (COMMANDS[name], flags, command.EXAMPLES, names)
            print(options.describe(program, *about))
            return 0
        command.run(given, shlex.join(["optlab", name, *argv]))
        return 0
    except options.UsageError as error:
        _say(f"{program}: {error} (see {program} --help)")
        return 2
    except (BrokenPipeError, ModuleNotFoundError):
        raise
    except Exception as error:
        if flags["traceback"].value:
            traceback.print_exc()
        _say(f"{program}: {_explain(error)}")
        processes = sys.modules.get("optlab.lab.processes")
        lost = processes is not None and isinstance(error, processes.Lost)
        return _leave(1) if lost else 1


def _explain(error: Exception) -> str:
    """Optlab's own errors say all; others need the name of their kind."""
    own = type(error).__module__.startswith("optlab.")
    if own or isinstance(error, OSError):
        return str(error)
    return f"{type(error).__name__}: {error} (--traceback shows where)"


def _say(line: str) -> None:
    processes = sys.modules.get("optlab.lab.processes")
    line = f"{processes.speaker()}{line}" if processes else line
    print(" ".join(line.split()), file=sys.stderr)


def _leave(code: int) -> int:
    processes = sys.modules.get("optlab.lab.processes")
    return processes.leave(code) if processes else code
