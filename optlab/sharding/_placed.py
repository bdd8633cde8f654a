"""Optimizers on a mesh with Auto axes: the placement is said once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import core
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import trees
from optlab.sharding import _state

EVERYWHERE = PartitionSpec()


def placed(
    inner: optax.GradientTransformation, shardings: Any
) -> optax.GradientTransformationExtraArgs:
    """Tells an optimizer where the parameters are, on a mesh with Auto axes.

    With Explicit axes placement is part of an array's type: methods for matrices read
    it and move each matrix once. With Auto axes it cannot be seen while tracing, and
    the compiler guesses. Here the optimizer, and it alone, runs with Explicit axes: its
    state and updates keep their places, and its program is the one of an Explicit mesh.

        tx = sharding.placed(tx, jax.tree.map(lambda x: x.sharding, params))

    On meshes with Explicit axes, and on one device, this changes nothing, so that one
    line serves all. Functions among the extra arguments, such as `loss_fn`, still run
    with Auto axes.

    Args:
      inner: The transformation. All of it must know Explicit axes: those of this
        library and the element-wise ones of Optax do.
      shardings: Tree of `jax.sharding.Sharding` like the parameters.

    Returns:
      The transformation with the same state, placed as `state_shardings` says.

    Raises:
      ValueError: If the shardings are of several meshes, or a leaf has none.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import sharding
      >>> params = {"w": jnp.ones((4, 4))}
      >>> shardings = jax.tree.map(lambda x: x.sharding, params)
      >>> tx = sharding.placed(optax.sgd(0.5), shardings)
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> print(updates["w"][0])
      [-0.5 -0.5 -0.5 -0.5]

    Source:
      Written for this library.
    """
    inner = optax.with_extra_args_support(inner)
    known = {
        trees.path_string(path): s
        for path, s in jax.tree_util.tree_leaves_with_path(shardings)
    }
    mesh = _auto_mesh(known)
    if mesh is None:
        return inner
    explicit = _Explicit(mesh)

    specs = functools.partial(_specs, known)

    def state_specs(params: Any) -> Any:
        where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(params))
        found = _state.state_shardings(inner, params, where)
        return jax.tree.map(lambda s: s.spec, found)

    def init(params: optax.Params) -> Any:
        return explicit.run(inner.init, (params, specs(params)))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        like = updates if params is None else params
        alike = jax.tree.structure(like)

        def extra(argument: Any) -> Any:
            if jax.tree.structure(argument) == alike:
                return specs(argument)
            return jax.tree.map(lambda _: EVERYWHERE, argument)

        functions = {k: v for k, v in extra_args.items() if callable(v)}
        arrays = {k: v for k, v in extra_args.items() if k not in functions}

        def run(updates: Any, state: Any, params: Any, arrays: Any) -> Any:
            inside = {k: explicit.outside(f) for k, f in functions.items()}
            return inner.update(updates, state, params, **arrays, **inside)

        return explicit.run(
            run,
            (updates, specs(updates)),
            (state, state_specs(like)),
            (params, None if params is None else specs(params)),
            (arrays, {k: extra(v) for k, v in arrays.items()}),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _specs(known: dict[str, NamedSharding], tree: Any) -> Any:
    """Returns the placement of each leaf; more may be known than there are."""

    def spec(path: Any, leaf: jax.Array) -> PartitionSpec:
        name = trees.path_string(path)
        if name not in known:
            raise ValueError(
                f"placed: leaf {name!r} of shape {leaf.shape} has no sharding;"
                " shardings must be a tree like the parameters"
            )
        return known[name].spec

    return jax.tree_util.tree_map_with_path(spec, tree)


class _Explicit:
    """Runs functions as if all axes of an Auto mesh were Explicit."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self.mesh = mesh

    def run(self, function: Callable[..., Any], *placed: tuple[Any, Any]) -> Any:
        """Calls a function with arguments, each a tree and the tree of its specs."""
        if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
            return function(*(tree for tree, _ in placed))
        inside = jax.sharding.explicit_axes(
            function,
            axes=self.mesh.axis_names,
            in_sharding=tuple(specs for _, specs in placed),
        )
        trees = tuple(tree for tree, _ in placed)
        traced = any(isinstance(x, core.Tracer) for x in jax.tree.leaves(trees))
        with (
            jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
            if traced
            else jax.set_mesh(self.mesh)
        ):
            return inside(*trees)

    def outside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Lets a function that is called inside run with Auto axes again."""
        return jax.sharding.auto_axes(
            function, axes=self.mesh.axis_names, out_sharding=EVERYWHERE
        )


def _auto_mesh(known: dict[str, Any]) -> Any:
    """Returns the one mesh of the shardings if its axes are Auto, else None."""
    meshes = {s.mesh: name for name, s in known.items() if isinstance(s, NamedSharding)}
    if len(meshes) > 1:
        (one, first), (other, second) = list(meshes.items())[:2]
        raise ValueError(
            f"placed: leaf {first!r} is on {one}, leaf {second!r} on {other}; put all"
            " parameters on one mesh"
        )
    mesh = next(iter(meshes), None)
    if mesh is None or AxisType.Auto not in mesh.axis_types:
        return None
    return mesh
