"""The training step: the same for nnx and linen, with every extra argument."""

import contextlib
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding

from optlab import optimizers, schedules
from optlab.lab import flax_step, parts
from tests.lab import toy


class Seen(NamedTuple):
    value: jax.Array
    value_again: jax.Array
    gradient: jax.Array
    key: jax.Array


def witness() -> optax.GradientTransformationExtraArgs:
    """Keeps the extra arguments that it is given in its state."""

    def init(params):
        del params
        return Seen(*(jnp.zeros(()),) * 3, jax.random.key_data(jax.random.key(0)))

    def update(updates, state, params=None, *, value, grad, value_fn, key, **extra):
        del state, extra
        again, norm = value_fn(params), optax.tree.norm(grad)
        return updates, Seen(value, again, norm, jax.random.key_data(key))

    return optax.GradientTransformationExtraArgs(init, update)


@nnx.jit
def take_step(model, optimizer, batch, key=None):
    return flax_step.train_step(model, optimizer, batch, toy.loss, key=key)


@jax.jit
def take_linen_step(state, batch, key=None):
    return flax_step.linen_train_step(state, batch, linen_loss, key=key)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.tanh(linen.Dense(toy.WIDTH, name="up")(x))
        return linen.Dense(1, name="down")(x)


def nnx_pair(tx):
    model = toy.WORKLOAD.make_model(0)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def linen_state(tx):
    params = nnx.to_pure_dict(nnx.state(toy.WORKLOAD.make_model(0), nnx.Param))
    apply = LinenNet().apply
    return flax_step.LinenTrainState.create(apply_fn=apply, params=params, tx=tx)


def linen_loss(params, batch):
    return toy.loss(lambda x: LinenNet().apply({"params": params}, x), batch)


@pytest.mark.parametrize(
    "tx",
    [
        optimizers.adamw(schedules.linear(0.1, total_steps=10)),
        optimizers.muon(0.02, rest=optimizers.adamw(0.01)),
        optax.sgd(0.1),
    ],
    ids=["adamw", "muon", "optax"],
)
def test_the_linen_twin_takes_the_same_steps(tx):
    model, optimizer = nnx_pair(tx)
    state = linen_state(tx)
    for step in range(4):
        batch = toy.draw(0, step)
        ours = take_step(model, optimizer, batch)
        state, theirs = take_linen_step(state, batch)
        assert ours.keys() == theirs.keys()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), ours, theirs)
    params = jax.tree.leaves(state.params)
    for own, other in zip(toy.arrays(model), params, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)
    assert (int(state.step), int(optimizer.step[...])) == (4, 4)


def test_extra_arguments_reach_the_transformation_through_nnx():
    model, optimizer = nnx_pair(optax.chain(witness(), optax.sgd(0.1)))
    batch, key = toy.draw(0, 0), jax.random.key(7)
    scalars = take_step(model, optimizer, batch, key)
    seen = nnx.as_pure(optimizer.opt_state[0])
    check_seen(seen, scalars, key)


def test_a_chain_may_count_on_what_the_step_gives():
    given = {}

    def update(updates, state, params=None, **extra):
        given.update(extra)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    model, optimizer = nnx_pair(tx)
    take_step(model, optimizer, toy.draw(0, 0), jax.random.key(0))
    assert set(given) == set(parts.SUPPLIED)


def test_extra_arguments_reach_the_transformation_through_linen():
    state = linen_state(optax.chain(witness(), optax.sgd(0.1)))
    batch, key = toy.draw(0, 0), jax.random.key(7)
    state, scalars = take_linen_step(state, batch, key)
    check_seen(state.opt_state[0], scalars, key)


def check_seen(seen, scalars, key):
    assert seen.value == scalars["loss"] > 0
    np.testing.assert_allclose(seen.value_again, scalars["loss"], rtol=1e-6)
    np.testing.assert_allclose(seen.gradient, scalars["gradient_norm"], rtol=1e-6)
    np.testing.assert_array_equal(seen.key, jax.random.key_data(key))


def test_apply_gradients_hands_extra_arguments_on():
    state = linen_state(optax.chain(witness(), optax.sgd(0.5)))
    ones = jax.tree.map(jnp.ones_like, state.params)
    after = state.apply_gradients(
        grads=ones,
        value=jnp.array(3.0),
        grad=ones,
        value_fn=lambda params: jnp.array(4.0),
        key=jax.random.key(1),
    )
    assert (after.opt_state[0].value, after.opt_state[0].value_again) == (3, 4)
    bias = state.params["down"]["bias"] - 0.5
    np.testing.assert_array_equal(after.params["down"]["bias"], bias)
    assert int(after.step) == 1


@pytest.mark.parametrize("axes", [None, AxisType.Auto, AxisType.Explicit])
def test_a_line_search_gets_what_it_needs(axes):
    tx = optax.chain(
        optax.sgd(1.0),
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=8),
    )
    model, optimizer = nnx_pair(tx)
    batch = toy.draw(0, 0)
    with contextlib.ExitStack() as stack:
        if axes is not None:
            mesh = jax.make_mesh((8,), ("data",), axis_types=(axes,))
            stack.enter_context(jax.set_mesh(mesh))
            whole, divided = (NamedSharding(mesh, jax.P(*a)) for a in ((), ("data",)))
            state = nnx.state((model, optimizer))
            nnx.update((model, optimizer), jax.device_put(state, whole))
            batch = jax.device_put(batch, divided)
        key = jax.random.key(0)
        losses = [take_step(model, optimizer, batch, key)["loss"] for _ in range(5)]
    assert all(after < before for before, after in itertools.pairwise(losses))


class Noisy(nnx.Module):
    """A net with batch statistics and dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.norm(self.linear(x))))


def test_batch_statistics_and_random_streams_move_on():
    model = Noisy(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.0), wrt=nnx.Param)
    batch = toy.draw(0, 0)
    losses = [float(take_step(model, optimizer, batch)["loss"]) for _ in range(2)]
    assert losses[0] != losses[1]  # another mask, for the rate is 0
    assert np.abs(np.asarray(model.norm.mean[...])).max() > 0
    first, second = (flax_step.evaluate(model, batch, toy.loss) for _ in range(2))
    assert first["loss"] == second["loss"]
    assert first.keys() == {"loss", "largest"}


def test_the_rate_of_each_group_is_reported():
    schedule = schedules.linear(0.1, total_steps=4)
    tx = optimizers.muon(schedule, rest=optimizers.adamw(0.01))
    model, optimizer = nnx_pair(tx)
    for step in range(3):
        scalars = take_step(model, optimizer, toy.draw(0, step))
        found = {k: float(rate) for k, rate in scalars["learning_rates"].items()}
        assert found == pytest.approx({"matrix": float(schedule(step)), "rest": 0.01})


def test_both_norms_are_those_of_the_gradient():
    # With rate 1 the update of plain descent is minus the gradient.
    model, optimizer = nnx_pair(optax.sgd(1.0))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    scalars = take_step(model, optimizer, toy.draw(0, 0))
    moved = jax.tree.map(jnp.subtract, before, nnx.state(model, nnx.Param))
    entries = np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])
    for name, order in (("gradient_norm", 2), ("gradient_l1_norm", 1)):
        wanted = np.linalg.norm(entries, ord=order)
        np.testing.assert_allclose(scalars[name], wanted, rtol=1e-5)


def test_half_precision_parameters_have_float32_norms():
    model, optimizer = nnx_pair(optax.sgd(0.1))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model, nnx.Param))
    nnx.update(model, half)
    scalars = take_step(model, optimizer, toy.draw(0, 0))
    names = ("loss", "gradient_norm", "gradient_l1_norm", "update_norm")
    assert all(scalars[name].dtype == jnp.float32 for name in names)


class Foretold(NamedTuple):
    predicted_loss: jax.Array
    predicted_final_loss: jax.Array


def test_what_a_law_foretells_is_that_of_the_state_before_the_update():
    def update(updates, state, params=None):
        return updates, Foretold(state.predicted_loss + 1, state.predicted_final_loss)

    law = optax.GradientTransformation(
        lambda params: Foretold(jnp.zeros(()), jnp.full((), 9.0)), update
    )
    tx, batch = optax.chain(optax.sgd(0.1), law), toy.draw(0)
    model, optimizer = nnx_pair(tx)
    state, found = linen_state(tx), []
    for _ in range(3):
        scalars = take_step(model, optimizer, batch)
        state, linen_scalars = take_linen_step(state, batch)
        for numbers in (scalars, linen_scalars):
            found.append([float(numbers[key]) for key in flax_step.PREDICTIONS])
    assert found == [[0, 9], [0, 9], [1, 9], [1, 9], [2, 9], [2, 9]]
    assert "predicted_loss" not in take_step(*nnx_pair(optax.sgd(0.1)), batch)
