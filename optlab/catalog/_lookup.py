"""Finding rows of the catalogue, and writing them down."""

import difflib

from optlab.catalog import (
    _adaptive,
    _curvature,
    _first_order,
    _functions,
    _geometry,
    _kronecker,
    _layerwise,
    _links,
    _low_memory,
    _momentum,
    _optimizers,
    _schedules,
    _spectral,
    _tuning_free,
    _wrappers,
)
from optlab.catalog._row import Row

ROWS = (
    *_optimizers.ROWS,
    *_first_order.ROWS,
    *_adaptive.ROWS,
    *_layerwise.ROWS,
    *_geometry.ROWS,
    *_links.ROWS,
    *_momentum.ROWS,
    *_spectral.ROWS,
    *_kronecker.ROWS,
    *_curvature.ROWS,
    *_low_memory.ROWS,
    *_tuning_free.ROWS,
    *_wrappers.ROWS,
    *_schedules.ROWS,
    *_functions.ROWS,
)


def rows(room: str | None = None) -> tuple[Row, ...]:
    """Returns the rows of the catalogue, or those of one room.

    Args:
      room: 'optimizers', 'wrappers', 'schedules', 'estimators' and so on; None for
        all.

    Returns:
      Rows in the order of the catalogue.

    Raises:
      ValueError: If no row is in that room.

    Example:
      >>> from optlab import catalog
      >>> [row.name for row in catalog.rows("optimizers")][:2]
      ['sgd', 'adamw']
    """
    rooms = sorted({row.room for row in ROWS})
    if room is not None and room not in rooms:
        raise ValueError(f"catalog.rows: no room {room!r}; there are {rooms}")
    return tuple(row for row in ROWS if room in (None, row.room))


def get(name: str, room: str | None = None) -> Row:
    """Returns the row of an algorithm.

    Args:
      name: Its name.
      room: Room in which to look; None for all.

    Returns:
      The row.

    Raises:
      ValueError: If there is none; the message has the nearest names.

    Example:
      >>> from optlab import catalog
      >>> catalog.get("muon").family
      'spectral'
    """
    names = {row.name: row for row in rows(room)}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or sorted(names)
        raise ValueError(
            f"catalog.get: no {'row' if room is None else room.removesuffix('s')} named"
            f" {name!r}; did you mean {', '.join(near)}?"
        )
    return names[name]


def markdown_table() -> str:
    """Writes the catalogue as a Markdown table, as it stands in the README.

    Returns:
      The table, one line a row of the catalogue.

    Example:
      >>> from optlab import catalog
      >>> print(catalog.markdown_table().splitlines()[0])
      | name | room | family | source |
    """
    lines = ["| name | room | family | source |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        paper = row.paper
        source = f"[{paper.authors} {paper.year}]({paper.url})"
        room = f"{row.room}, a link" if row.link else row.room
        lines.append(f"| `{row.name}` | {room} | {row.family} | {source} |")
    return "\n".join(lines)
