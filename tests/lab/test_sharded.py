"""Flax's optimizer objects: made on a mesh in one call, and staying there."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import sharding
from optlab.lab import placement, sharded

P = PartitionSpec
BOTH = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)
POLICIES = pytest.mark.parametrize(
    ("policy", "moment"),
    [(None, P(None, "model")), (sharding.Policy("data"), P("data", "model"))],
    ids=["beside", "zero1"],
)
INPUTS = jnp.sin(jnp.arange(48.0)).reshape(4, 12)


class Narrow(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(8, name="dense")(x)


def where(axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    return placement.Placement(mesh, lambda path, x: P(*(None, "model")[-x.ndim :]))


def places(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def require_same_places(one, other):
    for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@BOTH
@POLICIES
def test_a_train_state_is_made_and_stays_on_the_mesh(axis_type, policy, moment):
    at, model = where(axis_type), Narrow()
    bare = model.init(jax.random.key(0), INPUTS)["params"]
    with jax.set_mesh(at.mesh):
        state = sharded.train_state(
            model.apply, at.params(bare), optax.adamw(0.1), policy=policy
        )
        assert state.opt_state[0].mu["dense"]["kernel"].sharding.spec == moment
        assert state.opt_state[0].mu["dense"]["bias"].sharding.spec != P()
        assert state.step.sharding == NamedSharding(at.mesh, P())

        def loss(params):
            return jnp.sum(model.apply({"params": params}, INPUTS) ** 2)

        grads = jax.device_put(jax.grad(loss)(bare), places(state.params))
        step = jax.jit(lambda s, g: s.apply_gradients(grads=g))
        after = step(state, grads)
        require_same_places(after, state)
        assert after.step == 1
    alone = train_state.TrainState.create(
        apply_fn=model.apply, params=bare, tx=optax.adamw(0.1)
    ).apply_gradients(grads=jax.grad(loss)(bare))
    for x, y in zip(*map(jax.tree.leaves, (after.params, alone.params)), strict=True):
        # The first step of Adam divides by a root: float32 has 24 bits.
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@BOTH
@POLICIES
def test_an_nnx_optimizer_is_made_and_stays_on_the_mesh(axis_type, policy, moment):
    at, model = where(axis_type), nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    nnx.update(model, at.params(nnx.state(model)))
    tx = optax.inject_hyperparams(optax.adamw)(0.1)
    with jax.set_mesh(at.mesh):
        optimizer = sharded.nnx_optimizer(model, tx, policy=policy)
        adam = optimizer.opt_state.inner_state[0]
        assert adam.mu["kernel"][...].sharding.spec == moment
        before = nnx.state((model, optimizer))
        grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))

        @nnx.jit
        def step(model, optimizer, grads):
            optimizer.update(model, grads)

        step(model, optimizer, grads)
        require_same_places(nnx.state((model, optimizer)), before)
        assert optimizer.step[...] == 1


def test_fields_of_a_subclass_are_kept():
    class WithStatistics(train_state.TrainState):
        statistics: dict

    params = {"w": jnp.ones(3)}
    made = sharded.train_state(
        None, params, optax.sgd(0.1), state_type=WithStatistics, statistics={"n": 3}
    )
    assert isinstance(made, WithStatistics) and made.statistics == {"n": 3}
    after = made.apply_gradients(grads=params)
    np.testing.assert_allclose(after.params["w"], 0.9)


def test_a_checkpoint_is_restored_into_the_places_that_were_said(tmp_path):
    at = where(AxisType.Auto)
    params = at.params({"w": jnp.ones((16, 8)), "b": jnp.ones(8)})
    policy = sharding.Policy(data_axis="data")
    tx = optax.adafactor(0.1, min_dim_size_to_factor=4)
    state = sharding.init_sharded(tx, params, policy=policy)
    like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(tx.init, params),
        sharding.state_shardings(tx, params, policy=policy),
    )
    with contextlib.closing(ocp.StandardCheckpointer()) as saved:
        saved.save(tmp_path / "state", state)
        saved.wait_until_finished()
        restored = saved.restore(tmp_path / "state", like)
    require_same_places(restored, state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
