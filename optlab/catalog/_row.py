"""What a row of the catalogue holds."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from optlab import sharding


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
      room: Room in which it lives: 'optimizers', 'wrappers', 'schedules'.
      family: Tag for tables and plots.
      paper: Its publication.
      needs: Extra arguments that its update requires, such as 'value' or 'key'.
      applies_to: 'matrix' if matrices get a rule of their own, otherwise 'any'.
      defaults: Arguments of `build` to start from.
      static: Arguments that `optax.inject_hyperparams` must leave alone.
      eval_params: From state and parameters to those to evaluate, or None.
      on_mesh: From a mesh and axis names to the arguments that differ there, or None.
      exempt: Promises of the conformance suite that the method cannot keep by its
        nature, each with the reason.
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
    exempt: Mapping[str, str] = dataclasses.field(default_factory=dict)


def spread_on_mesh(mesh: Any, axes: Any) -> Mapping[str, Any]:
    """The arguments on a mesh of a method with a state for each matrix."""
    return {"over": sharding.spread(mesh, axes)}
