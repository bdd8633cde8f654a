"""Mechanic: the inner rate does not matter, nothing stalls, and Muon learns too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers, wrappers
from tests.conformance import references
from tests.optimizers import bowl, trajectories

INNER = {"sgd": optax.sgd, "adam": optax.adam}
RATES = (1e-3, 1.0, 1e3)
START, ZEROS = trajectories.START, trajectories.ZEROS
tree_gradients = trajectories.tree_gradients
BOTH = [jnp.float32, jnp.bfloat16]


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("inner", INNER)
def test_the_inner_rate_does_not_matter_nor_a_first_gradient_of_zero(inner, dtype):
    for rate in RATES:
        tx = wrappers.mechanic(INNER[inner](rate))
        end = bowl.final_loss(tx, dtype, zeros=1)
        assert end < (1e-3 if dtype == jnp.float32 else 1e-2)


def test_optax_does_not_start_at_small_rates_nor_in_bfloat16():
    theirs = optax.contrib.mechanize
    for inner in (optax.sgd, optax.adam):
        # It looks for the sum of the steps in parameters that have rounded it off.
        assert bowl.final_loss(theirs(inner(1e-3))) == 7.0
        assert bowl.final_loss(theirs(inner(1.0)), jnp.bfloat16) == 7.0


def test_the_parameters_are_the_start_and_the_sum_times_its_factor():
    tx = wrappers.mechanic(optax.sgd(1.0))

    @jax.jit
    def far():
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(x, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), (x, jnp.sum(state.s) * state.delta)

        x = jnp.array(bowl.START)
        return jax.lax.scan(step, (x, tx.init(x)), length=300)[1]

    points, way = far()
    np.testing.assert_allclose(way, points - jnp.array(bowl.START), atol=3e-5)
    assert jnp.abs(way).max() > 2.9


def test_steps_follow_the_reference_while_the_factor_grows():
    settings = {"weight_decay": 0.1, "decays": 4, "eps": 1e-4, "s_init": 1e-3}
    with jax.enable_x64(True):
        tx = wrappers.mechanic(optax.adam(1.0), **settings)
        x, points = jnp.array(bowl.START), []
        state, update = tx.init(x), jax.jit(tx.update)
        for _ in range(30):
            updates, state = update(x, state, x)
            x = x + updates
            points.append(np.asarray(x))
        factor = float(jnp.sum(state.s))
    grads = [np.array(bowl.START), *points[:-1]]
    want = references.REFERENCES["mechanic"](settings)(grads[0], grads)
    np.testing.assert_allclose(points, want, atol=1e-9)
    assert factor > 10 * settings["s_init"]


def test_without_a_turn_of_the_gradient_the_factor_is_a_bet_that_grows():
    # g = 1 and D = -t: h = -t, and every bet is won.
    tx, x = wrappers.mechanic(optax.sgd(1.0), weight_decay=0.0, decays=1), jnp.zeros(1)
    state = tx.init(x)
    factors = []
    for _ in range(3):
        _, state = tx.update(jnp.ones(1), state, x)
        factors.append(float(state.s[0]))
    s = 1e-6
    second = (s * 1 + 1 * s) / 1
    third = (s * 2 + 0.9 * s + 2 * second) / (0.81 + 4) ** 0.5
    np.testing.assert_allclose(factors, [s, second, third], rtol=1e-5)


@pytest.mark.parametrize("dtype", BOTH)
def test_numbers_are_float32_and_do_not_stall(dtype):
    tx, g = wrappers.mechanic(optax.sgd(1.0)), jnp.ones(1, dtype)

    @jax.jit
    def run(state):
        # D stays at 1: h^2 is 1 in each of 2000 steps.
        hold = lambda _, s: tx.update(g, s, 0 * g)[1]._replace(  # noqa: E731
            delta=jnp.ones(1)
        )
        return jax.lax.fori_loop(0, 2000, hold, state)

    state = run(tx.init(g)._replace(delta=jnp.ones(1)))
    decay = (1 - 1e-6) ** 2
    want = (1 - decay**2000) / (1 - decay)
    np.testing.assert_allclose(np.square(state.squares[-1]), want, rtol=1e-3)
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"int32", "float32"}


@pytest.mark.parametrize("inner", INNER)
def test_a_first_gradient_of_zero_is_harmless(inner):
    tx = wrappers.mechanic(INNER[inner](1.0))
    grads = tree_gradients(3)
    points, state = trajectories.parameters(tx, START, [ZEROS, *grads], compiled=True)
    jax.tree.map(np.testing.assert_array_equal, points[0], START)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    if inner == "sgd":
        # An inner state that counts would be one step ahead.
        want, _ = trajectories.parameters(tx, START, grads, compiled=True)
        same = functools.partial(np.testing.assert_allclose, rtol=1e-6)
        jax.tree.map(same, points[1:], want)


def test_a_nan_leaves_the_factors_and_the_other_leaf():
    tx, grads = wrappers.mechanic(optax.sgd(1.0)), tree_gradients(4)
    grads[2]["b"] = np.full(5, np.nan, np.float32)
    points, state = trajectories.parameters(tx, START, grads, compiled=True)
    assert np.isfinite(points[-1]["a"]).all() and np.isnan(points[-1]["b"]).all()
    assert all(np.isfinite(x).all() for x in state[1:5])


def matrix_loss(params):
    rng = np.random.default_rng(0)
    target, inputs = rng.normal(size=(6, 4)), rng.normal(size=(32, 6))
    w = params["kernel"].astype(jnp.float32)
    return jnp.mean(jnp.square(jnp.asarray(inputs, jnp.float32) @ (w - target)))


@functools.partial(jax.jit, static_argnums=(0, 2))
def muon_losses(make, rates, dtype):
    def end(rate):
        tx, start = make(rate), {"kernel": jnp.zeros((6, 4), dtype)}

        def step(carry, _):
            params, state = carry
            g = jax.grad(matrix_loss)(params)
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=400)
        return matrix_loss(params)

    return jax.lax.map(end, rates)


@pytest.mark.parametrize("dtype", BOTH)
def test_muon_learns_at_any_rate(dtype):
    rates = jnp.array(RATES)
    # From 4.7. By itself Muon has gone a third of the way, is near, or is lost.
    alone = muon_losses(optimizers.muon, rates, jnp.float32)
    assert alone[0] > 1 and alone[2] > 1
    tuned = lambda rate: wrappers.mechanic(optimizers.muon(rate))  # noqa: E731
    assert muon_losses(tuned, rates, dtype).max() < 1e-2


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_meshes_equal_one_device_while_the_factor_grows(kind):
    tx = wrappers.mechanic(optax.sgd(1.0), s_init=1e-2)
    params = {"kernel": np.ones((8, 16), np.float32)}
    grads = [jax.tree.map(lambda x, t=t: (1 + t) * x, params) for t in range(3)]
    want, state = trajectories.parameters(tx, params, grads, compiled=True)
    assert jnp.sum(state.s) > 2e-2
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
    place = NamedSharding(mesh, PartitionSpec(None, "devices"))
    with jax.set_mesh(mesh):
        x, *placed = [jax.device_put(tree, place) for tree in (params, *grads)]
        state, update = tx.init(x), jax.jit(tx.update)
        for g in placed:
            updates, state = jax.block_until_ready(update(g, state, x))
            x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(x["kernel"], want[-1]["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"s_init": 0.0}, r"mechanic: s_init must be above 0, got 0\.0"),
        (
            {"weight_decay": -1.0},
            r"mechanic: weight_decay must be 0 or more, got -1\.0",
        ),
        ({"eps": -1e-8}, "mechanic: eps must be 0 or more, got -1e-08"),
        ({"decays": 0}, "decays must be a whole number of 1 or more, got 0"),
        ({"decays": 2.5}, r"decays must be a whole number of 1 or more, got 2\.5"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        wrappers.mechanic(optax.sgd(1.0), **settings)


def test_missing_parameters_are_named():
    tx = wrappers.mechanic(optax.sgd(1.0))
    with pytest.raises(TypeError, match="mechanic: needs the parameters: update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
