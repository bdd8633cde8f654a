"""States that rest elsewhere than where they are worked on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from optlab.sharding import _parameters, _placed, _state


def stored(
    inner: optax.GradientTransformation, param_shardings: Any, policy: _state.Policy
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation whose state rests as a policy says.

    With ZeRO-1 each device of the data axis updates its share of every parameter: it
    takes its share of the gradients, keeps its share of the state, and the updates are
    gathered at the end. Stacks, and arrays on the host, come for the update and go back
    after it. Values are those of `inner`.

    It goes around everything else, `placed` is in it, and axes may be Explicit or Auto:

        where = jax.tree.map(lambda x: x.sharding, params)
        policy = sharding.Policy(data_axis="data")
        tx = sharding.stored(tx, where, policy)
        state = sharding.init_sharded(tx, params, policy=policy)

    Args:
      inner: The transformation; as for `placed`, it must know Explicit axes.
      param_shardings: As for `state_shardings`.
      policy: Where the state rests.

    Returns:
      The transformation with the same state. Functions among the extra arguments, such
      as `loss_fn`, are called with parameters in their own placement.

    Raises:
      TypeError: As `state_shardings`, when `init` or `update` runs.
      ValueError: As `state_shardings`, when `init` or `update` runs.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from optlab import sharding
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> place = NamedSharding(mesh, PartitionSpec())
      >>> params = {"w": jax.device_put(jnp.ones(4), place)}
      >>> zero1 = sharding.Policy(data_axis="data")
      >>> tx = sharding.stored(optax.sgd(0.5, momentum=0.9), {"w": place}, zero1)
      >>> updates, state = jax.jit(tx.update)(params, tx.init(params))
      >>> print(updates["w"])
      [-0.5 -0.5 -0.5 -0.5]
      >>> state[0].trace["w"].sharding.spec
      P('data',)

    Source:
      Written for this library. ZeRO-1: Rajbhandari et al. 2019, arXiv 1910.02054.
    """
    inner = optax.with_extra_args_support(inner)

    def plan_for(like: Any) -> tuple[_state.Plan, Any]:
        plan = _state.plan_of("stored", inner, like, param_shardings, policy)
        return plan, _placed.placed(inner, plan.seen.shardings(like))

    def init(params: optax.Params) -> Any:
        plan, tx = plan_for(params)
        return _at_rest(tx.init(_like_parameters(params, plan.seen)), plan)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        plan, tx = plan_for(updates if params is None else params)

        def outside(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(params: Any, *args: Any, **kwargs: Any) -> Any:
                return function(_like_parameters(params, plan.known), *args, **kwargs)

            return call

        def inside(argument: Any) -> Any:
            if callable(argument):
                return outside(argument)
            if _shapes(argument) == _shapes(updates):
                return _like_parameters(argument, plan.seen)
            return argument

        updates, state = tx.update(
            inside(updates),
            _at_work(state, plan),
            None if params is None else inside(params),
            **{name: inside(argument) for name, argument in extra_args.items()},
        )
        return _like_parameters(updates, plan.known), _at_rest(state, plan)

    return optax.GradientTransformationExtraArgs(init, update)


def _shapes(tree: Any) -> dict[_parameters.Path, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path: jnp.shape(x) for path, x in leaves}


def _like_parameters(tree: Any, known: _parameters.Parameters) -> Any:
    """Moves a tree like the parameters to the places of those."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _moved(x, known, known.by_path[path].cuts), tree
    )


def _at_work(state: Any, plan: _state.Plan) -> Any:
    leaves = []
    for x, leaf in zip(jax.tree.leaves(state), plan.leaves, strict=True):
        if leaf.memory_kind is not None:
            x = jax.device_put(x, jax.memory.Space.Device)
        if leaf.cuts != leaf.at_rest:
            x = _moved(x, plan.known, leaf.cuts)
        leaves.append(x)
    return plan.treedef.unflatten(leaves)


def _at_rest(state: Any, plan: _state.Plan) -> Any:
    leaves = []
    for x, leaf in zip(jax.tree.leaves(state), plan.leaves, strict=True):
        x = _moved(x, plan.known, leaf.at_rest)
        if leaf.memory_kind is not None:
            x = jax.device_put(x, plan.known.sharding(leaf.at_rest, leaf.memory_kind))
        leaves.append(x)
    return plan.treedef.unflatten(leaves)


def _moved(
    x: jax.Array, known: _parameters.Parameters, cuts: _parameters.Cuts
) -> jax.Array:
    """Moves an array on the mesh: by its type, or by telling the compiler."""
    if known.mesh is None:
        return x
    spec = _parameters.spec_of(cuts)
    # While a placement is asked for, an Auto mesh has a twin with Explicit axes.
    around = jax.sharding.get_abstract_mesh()
    if around.explicit_axes:
        return jax.reshard(x, NamedSharding(around, spec))
    if known.mesh.explicit_axes:
        return jax.reshard(x, NamedSharding(known.mesh, spec))
    return jax.lax.with_sharding_constraint(x, NamedSharding(known.mesh, spec))
