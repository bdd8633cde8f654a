"""What a row of the catalogue holds."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from optlab import links, optimizers, sharding

# What stands beside a link when a whole optimizer is wanted.
RATE, MOMENTUM = 0.1, 0.9


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
      build: Function that makes it; in 'optimizers', 'wrappers' and 'schedules'
        `build(**defaults)` works, in other rooms it is the function to call.
      room: Room in which it lives.
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
      link: Empty for what is a whole optimizer. 'first' or 'last' for a link without
        rate and sign: where it stands when SGD with momentum is put beside it, which
        is how the suite tests it and how the text of a chain trains with it.
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
    link: str = ""

    def whole(self) -> "Row":
        """Finds what a link is in a chain of its own: SGD with momentum beside it.

        Returns:
          The row of a whole optimizer, whose first argument is a learning rate; this
          row if it is one.

        Example:
          >>> from optlab import catalog
          >>> catalog.get("centralize_gradients").whole().defaults["learning_rate"]
          0.1
        """
        if not self.link:
            return self
        return dataclasses.replace(
            self,
            build=_beside_sgd(self.build, self.link),
            defaults={"learning_rate": RATE, **self.defaults},
            link="",
        )


def _beside_sgd(make: Callable[..., Any], place: str) -> Callable[..., Any]:
    """Makes the builder of an optimizer: its rate, and the arguments of the link."""

    @functools.wraps(make)
    def build(learning_rate: Any, **settings: Any) -> Any:
        parts = [make(**settings), optimizers.sgd(learning_rate, momentum=MOMENTUM)]
        chain = optax.chain(*(parts if place == "first" else reversed(parts)))
        # Half precision would be rounded between the two.
        return links.in_float32(chain)

    signature = inspect.signature(make)
    named = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=named) for p in signature.parameters.values()]
    rate = inspect.signature(optimizers.sgd).parameters["learning_rate"]
    build.__dict__["__signature__"] = signature.replace(parameters=[rate, *own])
    return build


def spread_on_mesh(mesh: Any, axes: Any) -> Mapping[str, Any]:
    """The arguments on a mesh of a method with a state for each matrix."""
    return {"over": sharding.spread(mesh, axes)}
