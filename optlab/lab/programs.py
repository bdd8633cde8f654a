"""The state of a run and its compiled parts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from optlab import trees
from optlab.lab import flax_step, microbatches, placement

# Where `search.steerable` keeps the rate, in the state of a run.
RATE = "opt_state/hyperparams/learning_rate"


class Programs(NamedTuple):
    """The compiled parts of a run; the first argument of each is its state.

    Attributes:
      step: (state, batch, key) -> state and what `flax_step.train_step` returns.
      update: The same with the optimizer's part alone.
      evaluate: (state, batch) -> metrics.
      begin: (state) -> sums of no microbatch.
      add: (state, sums, batch) -> sums.
      begin_slopes: (state) -> slopes of no microbatch.
      add_slope: (state, sums, slopes, batch) -> slopes.
      apply: (state, sums, slopes or None, key, rate) -> state and what
        `microbatches.train_step` returns.
    """

    step: Callable[..., Any]
    update: Callable[..., Any]
    evaluate: Callable[..., Any]
    begin: Callable[..., Any]
    add: Callable[..., Any]
    begin_slopes: Callable[..., Any]
    add_slope: Callable[..., Any]
    apply: Callable[..., Any]


@functools.lru_cache(maxsize=32)
def programs(
    graphdef: Any,
    loss: Any,
    pinned: tuple[Any, ...] | None,
    eval_params: Callable[[Any, Any], Any] | None,
) -> Programs:
    """Makes the compiled parts of a run; runs that differ in the seed share them.

    What is given as a state, as sums or as slopes and comes back is donated.

    Args:
      graphdef: Graph definition of the pair of model and optimizer.
      loss: From a model and a batch to the loss and other metrics.
      pinned: Shardings that the leaves of the state keep, or None.
      eval_params: As for `train.train`.

    Returns:
      The programs; each is compiled when it is first called.
    """

    def take(function: Callable[..., Any], state: Any, batch: Any, key: jax.Array):
        model, optimizer = nnx.merge(graphdef, state)
        key = jax.random.fold_in(key, optimizer.step[...])
        scalars = function(model, optimizer, batch, loss, key=key)
        return _split(pinned, model, optimizer), scalars

    def evaluate(state: Any, batch: Any) -> dict[str, jax.Array]:
        model, optimizer = nnx.merge(graphdef, state)
        params = flax_step.params_to_evaluate(model, optimizer, eval_params)
        return flax_step.evaluate(model, batch, loss, params=params)

    step, update = (
        jax.jit(functools.partial(take, function), donate_argnums=0)
        for function in (flax_step.train_step, flax_step.optimizer_step)
    )
    of_microbatches = _of_microbatches(graphdef, loss, pinned)
    return Programs(step, update, jax.jit(evaluate), *of_microbatches)


def _of_microbatches(
    graphdef: Any, loss: Any, pinned: tuple[Any, ...] | None
) -> tuple[Callable[..., Any], ...]:
    """Makes the programs of an update from several microbatches."""

    def begin(state: Any) -> microbatches.Sums:
        model, optimizer = nnx.merge(graphdef, state)
        return _held(pinned, state, microbatches.nothing(model, optimizer))

    def add(state: Any, sums: microbatches.Sums, batch: Any) -> microbatches.Sums:
        model, optimizer = nnx.merge(graphdef, state)
        sums = microbatches.add(model, optimizer, sums, batch, loss)
        return _held(pinned, state, sums)

    def begin_slopes(state: Any) -> microbatches.Slopes:
        return microbatches.no_slopes(*nnx.merge(graphdef, state))

    def add_slope(state: Any, sums: Any, slopes: Any, batch: Any) -> Any:
        model, optimizer = nnx.merge(graphdef, state)
        return microbatches.add_slope(model, optimizer, sums, slopes, batch, loss)

    def apply(state: Any, sums: Any, slopes: Any, key: jax.Array, rate: Any):
        model, optimizer = nnx.merge(graphdef, _with_rate(state, rate))
        key = jax.random.fold_in(key, optimizer.step[...])
        scalars = microbatches.train_step(model, optimizer, sums, slopes, key=key)
        return _split(pinned, model, optimizer), scalars

    return (
        jax.jit(begin),
        jax.jit(add, donate_argnums=1),
        jax.jit(begin_slopes),
        jax.jit(add_slope, donate_argnums=2),
        jax.jit(apply, donate_argnums=0),
    )


def _split(
    pinned: tuple[Any, ...] | None, model: nnx.Module, optimizer: nnx.Optimizer
) -> Any:
    """Returns the state, where its leaves are pinned."""
    leaves, treedef = jax.tree.flatten(nnx.split((model, optimizer))[1])
    if pinned is not None:
        leaves = map(lax.with_sharding_constraint, leaves, pinned)
    return jax.tree.unflatten(treedef, leaves)


def _held(
    pinned: tuple[Any, ...] | None, state: Any, sums: microbatches.Sums
) -> microbatches.Sums:
    """Keeps a mean gradient where the parameters are."""
    if pinned is None:
        return sums
    places = jax.tree.unflatten(jax.tree.structure(state), pinned)
    places = jax.tree.leaves(nnx.filter_state(places[0], nnx.Param))
    mean, treedef = jax.tree.flatten(sums.moments.mean)
    mean = treedef.unflatten(map(lax.with_sharding_constraint, mean, places))
    return sums._replace(moments=sums.moments._replace(mean=mean))


def initial_state(
    model: nnx.Module, tx: optax.GradientTransformation, where: placement.Placement
) -> tuple[Any, Any]:
    """Returns graph definition and state of the pair of model and optimizer.

    The state is a copy, because the steps donate it. Its types are strong: a weakly
    typed array would come back from the first step with another type, and the second
    step would be compiled anew.

    Args:
      model: The model.
      tx: The optimizer.
      where: Where the state shall be.
    """
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, where.params(jax.tree.map(jnp.copy, state)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))
    return graphdef, where.rest(jax.tree.map(_strong, state))


def _strong(leaf: jax.Array) -> jax.Array:
    weak = getattr(leaf, "weak_type", False)  # Random keys do not have it.
    return lax.convert_element_type(leaf, leaf.dtype) if weak else leaf


def is_rate(path: Any) -> bool:
    """Tells whether a leaf of a run's state is the rate of `search.steerable`."""
    return trees.path_string(path).endswith(RATE)


def _with_rate(state: Any, rate: Any) -> Any:
    """Returns a state with another learning rate, which may be traced."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(rate, x.dtype) if is_rate(path) else x, state
    )
