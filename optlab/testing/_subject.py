"""What is under test: a chain, how to build it anew, and its compiled step."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import catalog, links, trees
from optlab.testing import _compare
from optlab.testing._report import NotApplicable

STEPS = 4
# What another order of the same sums may cost in float32: 16 units in the last place
# of the largest entry of a leaf.
TOLERANCE = 16 * 2.0**-23

# Added to the test losses as values: a linear one falls below zero, which no loss of a
# model does, and where some methods stand still.
LEVEL = 100.0

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Point:
    """One place on a trajectory: parameters, the state there, the update that led."""

    params: Any
    state: Any
    updates: Any


def default_params() -> Any:
    """Makes the tree that a chain is tested on when the caller has none.

    It holds what a Flax model holds, as small as it can be: matrices (two of one
    shape, so that stacking by shape has something to stack), a scan-stacked kernel and
    bias, a convolution, vectors, a scalar and an empty leaf.

    Returns:
      Nested dict of float32 arrays.

    Example:
      >>> from optlab import testing
      >>> testing.default_params()["layers"]["kernel"].shape
      (3, 4, 6)
    """
    shapes = {
        "conv": {"kernel": (1, 2, 3, 4)},
        "dense": {"bias": (4,), "kernel": (6, 4)},
        "dense_same": {"kernel": (6, 4)},
        "embed": {"embedding": (7, 6)},
        "empty": {"kernel": (0, 4)},
        "layers": {"bias": (3, 6), "kernel": (3, 4, 6)},
        "norm": {"scale": (6,)},
        "temperature": (),
    }
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def extra_args_for(needs: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """Makes the function that supplies a row's extra arguments on the test losses."""

    def supply(params: Any, grads: Any, loss: Callable[[Any], Any]) -> dict[str, Any]:
        offered = {
            "value": lambda: loss(params) + LEVEL,
            "grad": lambda: grads,
            "value_fn": lambda: loss,
            "loss_fn": lambda: loss,
            "key": lambda: jax.random.key(0),
            "hessian_diag": lambda: jax.tree.map(jnp.ones_like, params),
            "layer_stats": lambda: _layer_stats(params),
            "attn_max_logit": lambda: _largest_logits(params),
            "logit_grad_l1": lambda: jnp.asarray(0.5, float),
        }
        unknown = sorted(set(needs) - set(offered))
        if unknown:
            raise ValueError(
                f"testing.check: cannot make the extra arguments {unknown}; pass"
                " extra_args, a function (params, grads, loss) -> dict"
            )
        return {name: offered[name]() for name in needs}

    return supply


def _layer_stats(params: Any) -> dict[str, trees.LayerStats]:
    """Makes statistics for each matrix, the same for each of a stack."""

    def pair(k: int, size: int) -> tuple[jax.Array, jax.Array]:
        mean = jnp.linspace(-0.5, 0.5, size) * jnp.ones((k, 1))
        moment = mean[:, :, None] * mean[:, None, :] + jnp.eye(size)
        return mean, moment

    stats = {}
    for group in trees.layer_groups(params, trees.matrix_views):
        for layer in group:
            k, m, n = layer.shape
            (a, a_moment), (g, g_moment) = (
                pair(k, m - (layer.bias is not None)),
                pair(k, n),
            )
            stats[layer.path] = trees.LayerStats(a, g, a_moment, g_moment)
    return stats


def attention(*shape: int) -> dict[str, Any]:
    """Makes queries and keys of one shape, (d, heads, head_dim)."""
    random = np.random.default_rng(1)
    return {
        side: {"kernel": jnp.asarray(random.normal(size=shape), jnp.float32)}
        for side in ("key", "query")
    }


def _largest_logits(params: Any) -> dict[str, jax.Array]:
    """Makes a largest logit for each head, from 50 to 400."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = {trees.path_string(path): leaf for path, leaf in leaves}
    return {
        path.removesuffix("/query/kernel"): jnp.linspace(50.0, 400.0, leaf.shape[-2])
        for path, leaf in kernels.items()
        if path.endswith("/query/kernel")
    }


class Subject:
    """A chain under test, with everything that several promises share.

    Promises call `step` and read `trajectory`, which compile once. Build one yourself
    to run single promises without compiling again: `check(subject, promises=[...])`.

    Args:
      tx_or_build: As in `check`.
      params: As in `check`.
      row: As in `check`.
      extra_args: As in `check`.
      exempt: As in `check`.
      reference: As in `check`.
      tolerance: As in `check`.

    Raises:
      TypeError: If `tx_or_build` is no transformation, row or factory, or a factory
        has arguments without a value.

    Example:
      >>> import optax
      >>> from optlab import testing
      >>> subject = testing.Subject(optax.sgd(0.1))
      >>> len(subject.trajectory())
      5
    """

    def __init__(
        self,
        tx_or_build: Any,
        params: Any = None,
        *,
        row: catalog.Row | None = None,
        extra_args: Callable[..., dict[str, Any]] | None = None,
        exempt: Mapping[str, str] | None = None,
        reference: Callable[..., Any] | None = None,
        tolerance: float = TOLERANCE,
    ):
        if isinstance(tx_or_build, catalog.Row):
            row = tx_or_build.whole()
            tx_or_build = row.build
        fixed = isinstance(tx_or_build, optax.GradientTransformation)
        if not fixed and not callable(tx_or_build):
            raise TypeError(
                "testing.check: expected a GradientTransformation, a catalog.Row or a"
                f" factory that returns a transformation, got {tx_or_build!r}"
            )
        self.row = row
        self.factory: Any = None if fixed else tx_or_build
        self.defaults = {} if fixed else _defaults(tx_or_build, row)
        self.tx: Any = tx_or_build if fixed else tx_or_build(**self.defaults)
        self.name = row.name if row else _name(tx_or_build)
        needs = row.needs if row else ()
        self.own_params = params is None
        self.params = default_params() if params is None else params
        if params is None and "attn_max_logit" in needs:
            self.params["attention"] = attention(4, 2, 3)
        self.extra_args = extra_args or extra_args_for(needs)
        self.exempt = {**(row.exempt if row else {}), **(exempt or {})}
        self.reference = reference
        self.tolerance = tolerance
        self._made: dict[Callable[..., Any], Any] = {}
        self.traces = 0
        # (params, state, grads) -> (params, state, updates), compiled.
        self.step = self.step_of(self.tx)

    @property
    def learning_rate(self) -> float | None:
        """The rate that the chain was built with; None if unknown or a schedule."""
        rate = self.defaults.get("learning_rate")
        return None if rate is None or callable(rate) else float(rate)

    def build(self, **changes: Any) -> optax.GradientTransformation:
        """Builds the chain again with some arguments changed."""
        if self.factory is None:
            raise NotApplicable("the chain is already built; pass a Row or a factory")
        takes = inspect.signature(self.factory).parameters
        for name in changes:
            if name not in takes:
                raise NotApplicable(f"{self.name} has no argument {name}")
        return self.factory(**{**self.defaults, **changes})

    def step_of(self, tx: Any) -> Callable[[Any, Any, Any], tuple[Any, Any, Any]]:
        """Compiles (params, state, grads) -> (params, state, updates) of a chain."""

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any, Any]:
            # Runs when JAX traces, hence once for each compilation.
            self.traces += 1
            # The linear loss whose gradient at every point is `grads`.
            # In float32: a loss is not rounded like a parameter.
            wide = links.widen(grads)

            def loss(p: Any) -> jax.Array:
                return links.inner_product(wide, links.widen(p))

            extra = self.extra_args(params, grads, loss)
            updates, state = tx.update(grads, state, params, **extra)
            return optax.apply_updates(params, updates), state, updates

        return jax.jit(step)

    def once(self, make: "Callable[[Subject], Made]") -> Made:
        """Returns make(subject), computed once for all promises that ask."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def gradients(self, k: int, like: Any = None) -> Any:
        """Makes the k-th gradient: standard normal entries, the same in every run."""
        random = np.random.default_rng(1000 + k)
        return jax.tree.map(
            lambda p: jnp.asarray(random.normal(size=p.shape), p.dtype),
            self.params if like is None else like,
        )

    def trajectory(self) -> list[Point]:
        """Returns the start and the points after each of the first `STEPS` steps."""
        return self.once(_trajectory)[0]

    def compilations(self) -> int:
        """Returns how often the step was compiled for the trajectory."""
        return self.once(_trajectory)[1]

    def run(self, step: Callable[..., Any], state: Any) -> list[Point]:
        """Walks `STEPS` steps from the start with another step or another state."""
        points = [Point(self.params, state, None)]
        for k in range(STEPS):
            params, state, updates = step(points[-1].params, state, self.gradients(k))
            points.append(Point(params, state, updates))
        return points

    def require_steps_agree(
        self, tx: optax.GradientTransformation, tolerance: float
    ) -> str:
        """Checks that another chain takes the very steps of this one."""
        got = self.run(self.step_of(tx), tx.init(self.params))
        worst, where = _compare.gap(
            [point.updates for point in got[1:]],
            [point.updates for point in self.trajectory()[1:]],
        )
        return _compare.require_small(worst, where, tolerance)


def _trajectory(subject: Subject) -> tuple[list[Point], int]:
    before = subject.traces
    points = subject.run(subject.step, subject.tx.init(subject.params))
    return points, subject.traces - before


def _name(tx_or_build: Any) -> str:
    """Names a factory, also inside a partial; a transformation has no name."""
    function = getattr(tx_or_build, "func", tx_or_build)
    return getattr(function, "__name__", "chain")


def _defaults(build: Callable[..., Any], row: catalog.Row | None) -> dict[str, Any]:
    """Collects the values that a factory is called with, checking that none lacks."""
    if row is not None:
        return dict(row.defaults)
    defaults, missing = {}, []
    for name, parameter in inspect.signature(build).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            missing.append(name)
        else:
            defaults[name] = parameter.default
    if missing:
        raise TypeError(
            f"testing.check: the factory needs {missing}; give them with"
            " functools.partial(factory, name=value)"
        )
    return defaults
