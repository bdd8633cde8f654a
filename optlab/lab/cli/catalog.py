"""`optlab catalog`."""

import functools
import inspect
import textwrap
import types
from typing import Any

from absl import flags

from optlab import catalog
from optlab.lab import settings
from optlab.lab.cli import options

EXAMPLES = """\
optlab catalog
    everything
optlab catalog --room schedules
    one room
optlab catalog --name muon
    one entry: its paper, its arguments and its documentation
optlab catalog --markdown > table.md
    the table of the README
"""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags.

    Args:
      values: Set that receives them.
    """
    flags.DEFINE_string("room", None, "Only this room's entries.", flag_values=values)
    flags.DEFINE_string("name", None, "One entry, in full.", flag_values=values)
    flags.DEFINE_boolean("markdown", False, "Print Markdown.", flag_values=values)


def run(given: types.SimpleNamespace, command: str) -> None:
    """Prints the catalogue.

    Args:
      given: The value of each flag.
      command: The command line; nothing records it.
    """
    del command
    room, name = given.room, given.name
    if given.markdown:
        if room or name:
            raise options.UsageError("--markdown prints the whole table")
        print(catalog.markdown_table())
        return
    rooms = {row.room for row in catalog.rows()}
    if room is not None and room not in rooms:
        raise options.UsageError(settings.unknown("room", room, rooms))
    if name is None:
        _list(catalog.rows(room))
        return
    with options.checked():
        row = catalog.get(name)
    _detail(row)


def _list(rows) -> None:
    from optlab.lab import report

    report.show(
        ("name", "room", "family", "paper"),
        [(row.name, row.room, row.family, _paper(row)) for row in rows],
        numbers=False,
    )


def _paper(row: catalog.Row) -> str:
    return f"{row.paper.authors}, {row.paper.year}"


def _detail(row: catalog.Row) -> None:
    print(f"{row.name} ({row.room}, {row.family})")
    if row.link:
        # The text of a chain builds the same.
        print(f"A link; {row.name}+cosine trains with SGD and this link {row.link}.")
    print(f"{_paper(row)}: {row.paper.title}\n{row.paper.url}\n")
    call = f"{row.name}({', '.join(map(_argument, _parameters(row)))})"
    print(textwrap.fill(call, 80, subsequent_indent="    ", break_on_hyphens=False))
    print(f"\n{inspect.getdoc(row.build)}")


def _parameters(row: catalog.Row) -> list[inspect.Parameter]:
    return list(inspect.signature(row.build).parameters.values())


def _argument(parameter: inspect.Parameter) -> str:
    """An argument with its default, without its type."""
    if parameter.default is parameter.empty:
        return parameter.name
    return f"{parameter.name}={_name(parameter.default)}"


def _name(value: Any) -> str:
    """A value as one would write it, functions by their names."""
    if not isinstance(value, functools.partial):
        return getattr(value, "__name__", repr(value))
    given = [*map(_name, value.args)]
    given += [f"{name}={_name(part)}" for name, part in value.keywords.items()]
    return f"partial({', '.join([_name(value.func), *given])})"
