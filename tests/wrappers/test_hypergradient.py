"""Hypergradient descent: the paper's numbers, the plain chain at beta 0, its limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import inspection, links, wrappers

CURVATURES = jnp.linspace(1.0, 10.0, 20)


def quadratic(x):
    return 0.5 * jnp.sum(CURVATURES * x * x)


def wrap(inner=None, rate=0.1, beta=0.01, **more):
    inner = optax.identity() if inner is None else inner
    return wrappers.hypergradient(inner, rate, hyper_learning_rate=beta, **more)


def second_rate(tx, last, gradient):
    """The rate of a second step, after `last` and on `gradient`."""
    _, state = tx.update(last, tx.init(last))
    return tx.update(gradient, state)[1].learning_rate


def descend(tx, steps=300):
    def body(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(quadratic)(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.ones(20)
    (x, state), _ = jax.lax.scan(body, (x, tx.init(x)), length=steps)
    return float(quadratic(x)), float(state.learning_rate)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("additive", 0.12),
        ("multiplicative", 0.1 * (1 + 0.01 * 2 / 5**0.5)),
        ("cosine", 0.1 + 0.01 * 2 / 5**0.5),
    ],
)
def test_one_step_by_hand(rule, wanted):
    last, g = jnp.array([2.0, 1.0]), jnp.array([1.0, 0.0])
    rate = second_rate(wrap(rule=rule), last, g)
    np.testing.assert_allclose(rate, wanted, rtol=1e-6)
    # The product is over leaves: a tree of two leaves gives the same.
    rate = second_rate(
        wrap(rule=rule), {"a": last[0], "b": last[1]}, {"a": g[0], "b": g[1]}
    )
    np.testing.assert_allclose(rate, wanted, rtol=1e-6)


def test_the_multiplicative_rule_has_the_rate_that_the_paper_gives():
    rate = second_rate(
        wrap(rule="multiplicative"), jnp.array([2.0, 1.0]), jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(rate, 0.1008944, rtol=1e-6)


@pytest.mark.parametrize("rule", ["additive", "multiplicative", "cosine"])
def test_the_rate_rises_while_steps_agree_and_falls_when_they_turn(rule):
    g = jnp.array([1.0, 2.0])
    assert second_rate(wrap(rule=rule), g, g) > np.float32(0.1)
    assert second_rate(wrap(rule=rule), g, -g) < np.float32(0.1)
    assert second_rate(wrap(rule=rule), g, jnp.array([2.0, -1.0])) == np.float32(0.1)


@pytest.mark.parametrize("inner", [optax.identity, optax.scale_by_adam])
@pytest.mark.parametrize("rule", ["additive", "multiplicative", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beta_zero_is_the_plain_chain_bit_for_bit(inner, rule, dtype):
    rate = links.scale_by_learning_rate(0.03)
    plain = links.in_float32(optax.chain(inner(), rate))
    ends = []
    for tx in (plain, wrap(inner(), 0.03, 0.0, rule=rule)):
        w = {"a": jnp.ones((3, 2), dtype), "b": jnp.full((), 2.0, dtype)}
        state, step = tx.init(w), jax.jit(tx.update)
        for k in range(5):
            g = jax.tree.map(lambda x, k=k: jnp.sin(3 * x + k).astype(x.dtype), w)
            updates, state = step(g, state, w)
            w = optax.apply_updates(w, updates)
        ends.append(w)
    chex.assert_trees_all_equal(*ends)


def test_a_first_rate_that_is_too_small_does_little_harm():
    # The plain chain ends at 52.8; the wrapped ones, measured once, at these.
    np.testing.assert_allclose(descend(wrap(rate=1e-5, beta=0.0))[0], 52.8, rtol=1e-3)
    assert descend(wrap(rate=1e-5, beta=1e-5))[0] < 1e-8
    slow = descend(wrap(rate=1e-5, beta=0.02, rule="multiplicative"))[0]
    np.testing.assert_allclose(slow, 6.3, rtol=0.01)
    np.testing.assert_allclose(descend(wrap(rate=1e-3, beta=0.0))[0], 2.65, rtol=1e-3)
    assert descend(wrap(rate=1e-3, beta=1e-5))[0] < 1e-8
    assert descend(wrap(rate=1e-3, beta=0.02, rule="multiplicative"))[0] < 1e-12
    assert descend(wrap(rate=1e-5, beta=1e-3, rule="cosine"))[0] < 1e-12


def test_the_rate_stays_within_its_bounds():
    tx = wrap(rate=1e-3, beta=1.0, bounds=(1e-4, 1e-2))
    g = jnp.array([3.0])
    assert second_rate(tx, g, g) == np.float32(1e-2)
    assert second_rate(tx, g, -g) == np.float32(1e-4)
    assert second_rate(wrap(beta=1e3), g, -g) == 0.0  # never a step uphill


def test_a_schedule_of_factors_inside_is_part_of_the_direction():
    factors = optax.linear_schedule(0.0, 1.0, 4)
    tx = wrap(optax.scale_by_schedule(factors), rate=0.1, beta=0.01)
    w = jnp.ones(1)
    state, rates = tx.init(w), []
    for _ in range(4):
        updates, state = tx.update(w, state, w)
        rates.append(float(state.learning_rate))
    # <g_t, u_{t-1}> = 0, 0, 1/4, 1/2
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.1025, 0.1075], rtol=1e-6)
    np.testing.assert_allclose(updates, [-0.1075 * 0.75], rtol=1e-6)


def test_the_state_tells_step_and_rate():
    tx = optax.chain(optax.clip(10.0), wrap(beta=0.01))
    g = jnp.array([2.0, 1.0])
    state = tx.init(g)
    for step, rate in enumerate((0.1, 0.1, 0.15)):
        ((group, found),) = inspection.hyperparams(state).items()
        assert group == ""
        assert found["count"] == step
        np.testing.assert_allclose(found["learning_rate"], rate, rtol=1e-6)
        _, state = tx.update(g, state)


@pytest.mark.parametrize("rule", ["additive", "multiplicative", "cosine"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_product_that_is_not_finite_leaves_the_rate(rule, bad):
    g, worse = jnp.array([1.0, 1.0]), jnp.array([bad, 1.0])
    if rule == "additive" and bad == 1e30:
        g = g * 1e30
    assert second_rate(wrap(rule=rule), g, worse) == np.float32(0.1)
    # It recovers: one more clean step later the rate moves again.
    tx = wrap(rule=rule)
    state = tx.init(g)
    for gradient in (g, worse, jnp.ones(2), jnp.ones(2)):
        _, state = tx.update(gradient, state)
    assert np.isfinite(state.learning_rate) and state.learning_rate > 0.1


@pytest.mark.parametrize("rule", ["additive", "multiplicative", "cosine"])
def test_a_zero_gradient_and_an_empty_tree_leave_the_rate(rule):
    tx, zero = wrap(rule=rule), jnp.zeros(2)
    assert second_rate(tx, zero, zero) == np.float32(0.1)
    assert second_rate(tx, zero, jnp.ones(2)) == np.float32(0.1)
    for tree in ({}, {"a": optax.MaskedNode()}, {"a": jnp.zeros((0, 3))}):
        assert second_rate(tx, tree, tree) == np.float32(0.1)


def test_the_inner_transformation_gets_parameters_and_extra_arguments():
    def update(updates, state, params=None, *, scale, **extra_args):
        del extra_args
        return jax.tree.map(lambda u, p: scale * u + p, updates, params), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = wrap(inner, rate=0.5, beta=0.0)
    one = jnp.ones(2, jnp.bfloat16)
    updates, state = tx.update(one, tx.init(one), one, scale=2.0)
    assert (updates.dtype, state.direction.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(updates, [-1.5, -1.5])


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("rule", ["additive", "cosine"])
def test_on_a_mesh_the_rate_is_that_of_one_device(axis_type, rule):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    tx = wrap(beta=1e-3, rule=rule)
    last, g = (jnp.sin(jnp.arange(32.0).reshape(8, 4) * k) for k in (1, 2))
    wanted = second_rate(tx, last, g)
    assert wanted != np.float32(0.1)
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec("x", "y"))
        placed = [jax.device_put(x, where) for x in (last, g)]
        got = jax.jit(lambda *both: second_rate(tx, *both))(*placed)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_many_betas_are_one_compilation():
    traces = []

    @jax.jit
    def rate(beta, g):
        traces.append(1)
        return second_rate(wrap(beta=beta), g, g)

    for beta in (0.0, 0.01, 0.1):
        np.testing.assert_allclose(rate(beta, jnp.ones(1)), 0.1 + beta, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"rule": "sum"}, ValueError, "rule must be one of .* got 'sum'"),
        ({"rate": -0.1}, ValueError, "learning_rate must be finite and not negative"),
        ({"rate": float("nan")}, ValueError, "learning_rate must be finite"),
        ({"beta": -1e-3}, ValueError, "hyper_learning_rate must be finite and not neg"),
        ({"beta": float("inf")}, ValueError, "hyper_learning_rate must be finite"),
        ({"bounds": (0.2, 1.0)}, ValueError, "hold the learning rate, got 0.1"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds .* must be in order"),
        (
            {"rate": lambda count: 0.1},
            TypeError,
            "put a schedule of factors into inner",
        ),
    ],
)
def test_an_argument_without_sense_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        wrap(**changes)
