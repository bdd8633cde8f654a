"""Writes the generated tables into the pages that show them, between two marks.

python -m docs.tables
"""

import pathlib
from collections.abc import Callable

from optlab import catalog, testing

ROOT = pathlib.Path(__file__).parents[1]


def promises() -> str:
    """Returns the conformance suite's promises as a Markdown table."""
    rows = [
        f"| `{promise.name}` | {' '.join(promise.claim.split())} |"
        for promise in testing.PROMISES.values()
    ]
    return "\n".join(["| name | promise |", "| --- | --- |", *rows])


# Page, name of the table, and what writes it.
TABLES: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("README.md", "catalogue", catalog.markdown_table),
    ("docs/conformance.md", "promises", promises),
)


def splice(text: str, name: str, table: str) -> str:
    """Returns the text with the table between the marks instead of what was there.

    Raises:
      ValueError: If a mark is missing.
    """
    begin, end = (f"<!-- --8<-- [{side}:{name}] -->" for side in ("start", "end"))
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the mark {begin!r} or {end!r} is missing")
    return f"{before}{begin}\n\n{table.strip()}\n\n{end}{after}"


def main() -> None:
    """Writes every table."""
    for page, name, write in TABLES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        path.write_text(splice(text, name, write()), encoding="utf-8")


if __name__ == "__main__":
    main()
