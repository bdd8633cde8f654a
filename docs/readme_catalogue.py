"""Writes the catalogue's table into README.md, between two marks.

python docs/readme_catalogue.py
"""

import pathlib

from optlab import catalog

BEGIN = "<!-- --8<-- [start:catalogue] -->"
END = "<!-- --8<-- [end:catalogue] -->"
README = pathlib.Path(__file__).parents[1] / "README.md"


def splice(text: str, table: str) -> str:
    """Returns the text with the table between the marks instead of what was there.

    Raises:
      ValueError: If a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: the mark {BEGIN!r} or {END!r} is missing")
    return f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}"


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    README.write_text(splice(old, catalog.markdown_table()), encoding="utf-8")
