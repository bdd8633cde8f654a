"""One row for each algorithm: what it is called, who wrote it, how it is built."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from optlab import kernels, optimizers, schedules, sharding


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where an algorithm was published.

    Attributes:
      authors: Names, as one would cite them.
      title: Title of the publication.
      year: Year of the first version.
      url: Address at which it can be read.
    """

    authors: str
    title: str
    year: int
    url: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm of the catalogue.

    Attributes:
      name: Name on the command line, unique.
      build: Function that makes it; `build(**defaults)` works.
      room: Room in which it lives: 'optimizers', 'schedules'.
      family: Tag for tables and plots.
      paper: Its publication.
      needs: Extra arguments that its update requires, such as 'value' or 'key'.
      applies_to: 'matrix' if matrices get a rule of their own, otherwise 'any'.
      defaults: Arguments of `build` to start from.
      static: Arguments that `optax.inject_hyperparams` must leave alone.
      eval_params: From state and parameters to those to evaluate, or None.
      on_mesh: From a mesh and axis names to the arguments that differ there, or None.
    """

    name: str
    build: Callable[..., Any]
    room: str
    family: str
    paper: Paper
    needs: tuple[str, ...] = ()
    applies_to: str = "any"
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: tuple[str, ...] = ()
    eval_params: Callable[..., Any] | None = None
    on_mesh: Callable[..., Mapping[str, Any]] | None = None


def _muon_on_mesh(mesh: Any, axes: Any) -> Mapping[str, Any]:
    return {"orthogonalize": sharding.over_axis(kernels.newton_schulz, mesh, axes)}


_ROWS = (
    Row(
        "sgd",
        optimizers.sgd,
        "optimizers",
        "first order",
        Paper(
            "Polyak",
            "Some methods of speeding up the convergence of iteration methods",
            1964,
            "https://doi.org/10.1016/0041-5553(64)90137-5",
        ),
        defaults={"learning_rate": 0.1, "momentum": 0.9},
        static=("nesterov",),
    ),
    Row(
        "adamw",
        optimizers.adamw,
        "optimizers",
        "adaptive",
        Paper(
            "Loshchilov, Hutter",
            "Decoupled weight decay regularization",
            2017,
            "https://arxiv.org/abs/1711.05101",
        ),
        defaults={"learning_rate": 1e-3},
        static=("mask",),
    ),
    Row(
        "nadamw",
        optimizers.nadamw,
        "optimizers",
        "adaptive",
        Paper(
            "Dozat",
            "Incorporating Nesterov momentum into Adam",
            2016,
            "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
        ),
        defaults={"learning_rate": 1e-3},
        static=("mask",),
    ),
    Row(
        "lion",
        optimizers.lion,
        "optimizers",
        "sign",
        Paper(
            "Chen et al.",
            "Symbolic discovery of optimization algorithms",
            2023,
            "https://arxiv.org/abs/2302.06675",
        ),
        defaults={"learning_rate": 1e-4},
        static=("mask",),
    ),
    Row(
        "muon",
        optimizers.muon,
        "optimizers",
        "spectral",
        Paper(
            "Jordan et al.",
            "Muon: an optimizer for hidden layers in neural networks",
            2024,
            "https://kellerjordan.github.io/posts/muon/",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 0.02, "rest": optimizers.adamw(3e-4)},
        static=(
            "accumulator_dtype",
            "mask",
            "momentum",
            "nesterov",
            "orthogonalize",
            "rest",
            "scale",
            "views",
        ),
        on_mesh=_muon_on_mesh,
    ),
    Row(
        "constant",
        schedules.constant,
        "schedules",
        "constant",
        Paper(
            "Robbins, Monro",
            "A stochastic approximation method",
            1951,
            "https://doi.org/10.1214/aoms/1177729586",
        ),
        defaults={"peak": 1e-3},
    ),
    Row(
        "cosine",
        schedules.cosine,
        "schedules",
        "budgeted",
        Paper(
            "Loshchilov, Hutter",
            "SGDR: stochastic gradient descent with warm restarts",
            2016,
            "https://arxiv.org/abs/1608.03983",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "linear",
        schedules.linear,
        "schedules",
        "budgeted",
        Paper(
            "Defazio et al.",
            "When, why and how much? Adaptive learning rate scheduling by refinement",
            2023,
            "https://arxiv.org/abs/2310.07831",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "wsd",
        schedules.wsd,
        "schedules",
        "open-ended",
        Paper(
            "Hu et al.",
            "MiniCPM: unveiling the potential of small language models",
            2024,
            "https://arxiv.org/abs/2404.06395",
        ),
        defaults={
            "peak": 1e-3,
            "total_steps": 1000,
            "decay_steps": 200,
            "warmup_steps": 50,
        },
    ),
)


def rows(room: str | None = None) -> tuple[Row, ...]:
    """Returns the rows of the catalogue, or those of one room.

    Args:
      room: 'optimizers' or 'schedules'; None for all.

    Returns:
      Rows in the order of the catalogue.

    Raises:
      ValueError: If no row is in that room.

    Example:
      >>> from optlab import catalog
      >>> [row.name for row in catalog.rows("schedules")]
      ['constant', 'cosine', 'linear', 'wsd']
    """
    rooms = sorted({row.room for row in _ROWS})
    if room is not None and room not in rooms:
        raise ValueError(f"catalog.rows: no room {room!r}; there are {rooms}")
    return tuple(row for row in _ROWS if room in (None, row.room))


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
            f"catalog.get: no {'row' if room is None else room[:-1]} named {name!r};"
            f" did you mean {', '.join(near)}?"
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
    for row in _ROWS:
        paper = row.paper
        source = f"[{paper.authors} {paper.year}]({paper.url})"
        lines.append(f"| `{row.name}` | {row.room} | {row.family} | {source} |")
    return "\n".join(lines)
