"""Flax's optimizer objects on a mesh, with one call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training import train_state as linen
from jax.sharding import NamedSharding, PartitionSpec

from optlab import sharding


def train_state(
    apply_fn: Callable[..., Any],
    params: Any,
    tx: optax.GradientTransformation,
    *,
    policy: sharding.Policy | None = None,
    state_type: type[linen.TrainState] = linen.TrainState,
    **fields: Any,
) -> linen.TrainState:
    """Makes a linen `TrainState` whose arrays all lie on the mesh of the parameters.

    Args:
      apply_fn: Usually `model.apply`.
      params: The parameters, placed on a mesh with Explicit or Auto axes.
      tx: The optimizer; as for `sharding.placed`, it must know Explicit axes.
      policy: Where its state rests, such as ZeRO-1; None for beside the parameters.
      state_type: `TrainState`, or a subclass of it.
      **fields: Further fields of such a subclass.

    Returns:
      The state. `apply_gradients` keeps each array in its place.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from optlab.lab import sharded
      >>> place = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
      >>> params = {"w": jax.device_put(jnp.ones(8), place)}
      >>> state = sharded.train_state(None, params, optax.adam(0.1))
      >>> state = state.apply_gradients(grads=params)
      >>> state.opt_state[0].nu["w"].sharding.spec
      P('data',)
    """
    tx, creating = _placed(tx, params, policy)
    state = state_type.create(apply_fn=apply_fn, params=params, tx=creating, **fields)
    return state.replace(tx=tx, step=_beside(params, jnp.zeros((), jnp.int32)))


def nnx_optimizer(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    *,
    wrt: Any = nnx.Param,
    policy: sharding.Policy | None = None,
) -> nnx.Optimizer:
    """Makes an `nnx.Optimizer` whose arrays all lie on the mesh of the model.

    Args:
      model: The model, with parameters on a mesh with Explicit or Auto axes.
      tx: The optimizer; as for `sharding.placed`, it must know Explicit axes.
      wrt: Which variables are trained.
      policy: Where its state rests, such as ZeRO-1; None for beside the parameters.

    Returns:
      The optimizer. Its `update` keeps each array in its place.

    Example:
      >>> from flax import nnx
      >>> from optlab import optimizers
      >>> from optlab.lab import sharded
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> optimizer = sharded.nnx_optimizer(model, optimizers.adamw(0.1))
      >>> optimizer.opt_state[0].mu["kernel"].shape
      (2, 3)
    """
    params = nnx.as_pure(nnx.state(model, wrt))
    tx, creating = _placed(tx, params, policy)
    optimizer = nnx.Optimizer(model, creating, wrt=wrt)
    optimizer.tx = tx
    optimizer.step[...] = _beside(params, optimizer.step[...])
    return optimizer


def _placed(
    tx: optax.GradientTransformation, params: Any, policy: sharding.Policy | None
) -> tuple[Any, Any]:
    """Returns the optimizer in its place, and one that makes its state there."""
    where = jax.tree.map(lambda x: x.sharding, params)
    policy = policy or sharding.Policy()
    tx = sharding.stored(tx, where, policy)

    def init(params: Any) -> Any:
        return sharding.init_sharded(tx, params, where, policy)

    return tx, optax.GradientTransformationExtraArgs(init, tx.update)


def _beside(params: Any, scalar: jax.Array) -> jax.Array:
    """Puts a scalar on all devices of the parameters."""
    where = jax.tree.leaves(params)[0].sharding
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec())
    return jax.device_put(scalar, where)
