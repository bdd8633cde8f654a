"""Penalties for bilevel problems: the formula, optimum, resume, purity, meshes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import solvers

BENT = np.array([1.0, 2.0, 5.0], np.float32)
GOAL = np.array([0.5, -1.0, 2.0], np.float32)
SIGMA = optax.exponential_decay(0.5, transition_steps=4, decay_rate=0.5)


def upper(x, params, goal):
    return jnp.sum((params["y"] - goal) ** 2) / 2 + 0.01 * jnp.sum(x["shift"] ** 2)


def lower(x, params, bent):
    y = params["y"]
    return jnp.sum(bent * y**2) / 2 - x["shift"] @ y


FIRST = ({"shift": jnp.ones(3)}, {"y": jnp.array([0.0, 1.0, -1.0])})
HYPER_TX, PARAMS_TX = optax.sgd(0.1, momentum=0.5), optax.sgd(0.15)
BILEVEL = solvers.penalty_bilevel(
    upper, lower, HYPER_TX, PARAMS_TX, sigma=SIGMA, lower_steps=2
)
STEP = jax.jit(BILEVEL.step)
DONATING = jax.jit(BILEVEL.step, donate_argnums=0)


def on_paper(steps):
    """Walks the single loop in float64, with momentum for x and two steps below."""
    x, y = np.ones(3), np.array([0.0, 1.0, -1.0])
    z, m = y.copy(), np.zeros(3)
    bent, goal = BENT.astype(float), GOAL.astype(float)
    for t in range(steps):
        sigma = 0.5 * 0.5 ** (t / 4)
        for _ in range(2):
            z = z - 0.15 * (bent * z - x)
            y = y - 0.15 * (sigma * (y - goal) + bent * y - x)
        gradient = 0.02 * x + (-y + z) / sigma
        m = 0.5 * m + gradient
        x = x - 0.1 * m
    return x, y, z, gradient


def walked(state, steps, step=STEP):
    found = None
    for _ in range(steps):
        state, found = step(state, GOAL, BENT)
    return state, found


def require_same(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_ten_steps_are_those_of_the_formula():
    state, found = walked(BILEVEL.init(*FIRST), 10)
    x, y, z, gradient = on_paper(10)
    np.testing.assert_allclose(state.hyper["shift"], x, rtol=1e-4)
    np.testing.assert_allclose(state.params["y"], y, rtol=1e-4)
    np.testing.assert_allclose(state.reference["y"], z, rtol=1e-4)
    np.testing.assert_allclose(found.grads["shift"], gradient, rtol=1e-3, atol=1e-5)
    assert state.count == 10 and state.count.dtype == jnp.int32


def test_both_copies_begin_alike_and_the_first_direction_is_that_of_the_upper_loss():
    """Only then: one step later the pull of the upper loss is in their difference."""
    one = solvers.penalty_bilevel(upper, lower, HYPER_TX, optax.sgd(0.0), sigma=0.1)
    _, found = jax.jit(one.step)(one.init(*FIRST), GOAL, BENT)
    np.testing.assert_allclose(found.grads["shift"], 0.02 * np.ones(3), rtol=1e-6)
    assert found.gap == 0


def test_it_ends_where_the_hypergradient_is_zero_and_the_copies_are_their_optima():
    solver = solvers.penalty_bilevel(
        lambda x, y, goal: jnp.sum((y["y"] - goal) ** 2) / 2,
        lower,
        optax.sgd(0.3),
        optax.sgd(0.3),
        sigma=0.1,
    )
    run = jax.jit(
        lambda state: jax.lax.scan(
            lambda state, _: solver.step(state, GOAL, BENT), state, length=1500
        )
    )
    state, found = run(solver.init(*FIRST))
    # The optimum of the quadratic problem, x = H goal, is that of every sigma.
    np.testing.assert_allclose(state.hyper["shift"], BENT * GOAL, rtol=1e-3)
    np.testing.assert_allclose(state.reference["y"], GOAL, rtol=1e-3)
    assert found.value[-1] < 1e-5 and found.value[0] > 1


def test_a_run_goes_on_bit_for_bit_from_what_was_saved():
    whole, _ = walked(BILEVEL.init(*FIRST), 6)
    half, _ = walked(BILEVEL.init(*FIRST), 3)
    saved = jax.tree.map(np.asarray, half)
    again, _ = walked(jax.tree.map(jnp.asarray, saved), 3)
    require_same(again, whole)


def test_a_step_is_pure_and_its_state_may_be_donated():
    state = BILEVEL.init(*FIRST)
    before = jax.tree.map(np.array, state)
    wanted, _ = walked(state, 1)
    require_same(state, before)
    require_same(walked(state, 1)[0], wanted)
    donated, _ = walked(BILEVEL.init(*FIRST), 1, DONATING)
    require_same(donated, wanted)
    # What the states were made of is still there.
    assert not any(x.is_deleted() for x in jax.tree.leaves(FIRST))
    with jax.disable_jit():
        eager, _ = walked(state, 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        eager,
        wanted,
    )


def test_half_precision_is_widened_where_the_copies_would_be_the_same():
    """One step of 0.15 * 0.1 * 0.01 apart, next to 1 in bfloat16 is 1.008."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), FIRST)
    state = BILEVEL.init(*half)
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}
    require_same(walked(state, 1)[0], walked(BILEVEL.init(*FIRST), 1)[0])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_a_step_is_that_of_one_device(axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    goals, wide = np.tile(GOAL, (8, 1)), np.ones(4, np.float32)

    def over_rows(x, params, goals):
        return jnp.mean(jnp.sum((goals @ params["w"] - 1) ** 2, -1)) + 0 * x

    def ridge(x, params, goals):
        return over_rows(x, params, goals) + jnp.exp(x) * jnp.sum(params["w"] ** 2)

    solver = solvers.penalty_bilevel(over_rows, ridge, optax.sgd(0.1), optax.adam(0.1))
    step = jax.jit(solver.step)
    params = {"w": jnp.outer(GOAL, wide)}
    wanted, _ = jax.block_until_ready(step(solver.init(0.5, params), goals, goals))

    def put(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        placed = {"w": put(params["w"], None, "model")}
        state = jax.block_until_ready(solver.init(put(jnp.array(0.5)), placed))
        rows = put(goals, "data")
        state, _ = jax.block_until_ready(step(state, rows, rows))
    np.testing.assert_allclose(state.hyper, wanted.hyper, rtol=1e-4)
    np.testing.assert_allclose(state.params["w"], wanted.params["w"], rtol=1e-4)
    assert state.params["w"].sharding.is_equivalent_to(placed["w"].sharding, 2)


BAD = {
    "hyper_optimizer: inner must be a transformation": (
        TypeError,
        {"hyper_optimizer": 0.1},
    ),
    "sigma must be above 0, got 0": (ValueError, {"sigma": 0}),
    "lower_steps must be 1 or more, got 0": (ValueError, {"lower_steps": 0}),
    "sigma=1e-09 is below the resolution of float32": (ValueError, {"sigma": 1e-9}),
    "penalty_bilevel: the loss must be one number in float32 or wider": (
        TypeError,
        {"lower": lambda x, params, batch: params["y"]},
    ),
    "leaf '1/y' is int32": (TypeError, {"params": {"y": jnp.arange(3)}}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    error, changed = BAD[message]
    made = {"hyper_optimizer": HYPER_TX, "params_optimizer": PARAMS_TX, **changed}
    params = made.pop("params", FIRST[1])
    losses = {"upper": upper, "lower": made.pop("lower", lower)}
    with pytest.raises(error, match=re.escape(message)):
        solver = solvers.penalty_bilevel(**losses, **made)
        jax.eval_shape(solver.step, solver.init(FIRST[0], params), GOAL, BENT)
