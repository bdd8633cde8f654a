"""FedHyper: its numbers, its server and client rules, the wrapper it is a case of."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers, wrappers

FREE = (-math.inf, math.inf)


def corrections(tx, deltas):
    state, found, updates = tx.init(deltas[0]), [], []
    for delta in deltas:
        update, state = tx.update(delta, state)
        found.append(float(state.correction))
        updates.append(update)
    return found, updates


def test_the_rounds_by_hand():
    # <D0, D1> = 0.3, then <D1, D2> = -2.
    deltas = [jnp.array(d) for d in ([1.0, 0.0], [0.3, 0.4], [0.0, -5.0])]
    found, updates = corrections(optimizers.scale_by_fedhyper(), deltas)
    np.testing.assert_allclose(found, [0.0, 0.3, -0.8], rtol=1e-6)
    np.testing.assert_allclose(updates[1], 1.3 * deltas[1], rtol=1e-6)
    np.testing.assert_allclose(updates[2], 0.2 * deltas[2], rtol=1e-6)


def test_the_momentum_form_by_hand():
    tx = optimizers.scale_by_fedhyper(0.9, bounds=(-0.2, 4.0))
    deltas = [jnp.array(d) for d in ([1.0], [0.5], [-1.0])]
    found, updates = corrections(tx, deltas)
    # Sums 1, 1.4, 0.26; products 0.5 and -1.4, the second cut at -0.2.
    np.testing.assert_allclose(found, [0.0, 0.5, -0.2], rtol=1e-6)
    wanted = [1.0, 0.5 + 0.5 * 1.4, -1.0 - 0.2 * 0.26]
    np.testing.assert_allclose(np.ravel(updates), wanted, rtol=1e-6)


def test_equal_rounds_reach_the_bound_and_orthogonal_ones_stay():
    unit = jnp.array([0.6, 0.8])
    for normalize in (False, True):
        tx = optimizers.scale_by_fedhyper(normalize=normalize)
        found, _ = corrections(tx, [unit] * 7)
        np.testing.assert_allclose(found, [0, 1, 2, 3, 4, 4, 4], atol=1e-6)
        found, _ = corrections(tx, [jnp.array([3.0, 0.0]), jnp.array([0.0, 3.0])] * 3)
        assert found == [0.0] * 6


def test_normalised_products_do_not_grow_with_the_model():
    deltas = [jnp.array([0.2, 0.1]), jnp.array([0.2, -0.1]), jnp.array([0.1, 0.1])]
    wide = [jnp.tile(100 * d, 50) for d in deltas]
    tx = optimizers.scale_by_fedhyper(normalize=True)
    small, _ = corrections(tx, deltas)
    np.testing.assert_allclose(corrections(tx, wide)[0], small, rtol=1e-5)
    np.testing.assert_allclose(small[1], 0.6, rtol=1e-6)


def test_it_is_the_hypergradient_wrapper_with_both_rates_one():
    wrapped = wrappers.hypergradient(
        optax.identity(), 1.0, hyper_learning_rate=1.0, bounds=(0.2, 5.0)
    )
    ours, w = optimizers.fedhyper(1.0), jnp.zeros(3)
    state, other = ours.init(w), wrapped.init(w)
    for k in range(6):
        delta = jnp.sin(jnp.arange(3.0) + k)
        got, state = ours.update(delta, state)
        wanted, other = wrapped.update(delta, other)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_the_server_moves_towards_the_clients_mean():
    server = {"w": jnp.array([1.0, 2.0])}
    mean = {"w": jnp.array([2.0, 0.0])}
    tx = optimizers.fedhyper(1.0)
    difference = jax.tree.map(jnp.subtract, server, mean)
    updates, _ = tx.update(difference, tx.init(server), server)
    chex.assert_trees_all_close(optax.apply_updates(server, updates), mean)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_round_that_is_not_finite_leaves_the_correction(bad, normalize):
    one, worse = jnp.full(2, 0.5), jnp.array([bad, 1.0])
    tx = optimizers.scale_by_fedhyper(normalize=normalize, bounds=FREE)
    found, updates = corrections(tx, [one, one, worse, worse, one, one])
    first = found[1]
    assert found[3] == pytest.approx(found[2])
    assert np.isfinite(found).all()
    assert found[5] == pytest.approx(found[4] + first)
    assert np.isfinite(updates[-1]).all()


def test_a_zero_round_and_an_empty_tree():
    for normalize in (False, True):
        tx = optimizers.scale_by_fedhyper(normalize=normalize)
        assert corrections(tx, [jnp.zeros(2)] * 3)[0] == [0.0] * 3
        for tree in ({}, {"a": optax.MaskedNode()}, {"a": jnp.zeros((0, 2))}):
            assert corrections(tx, [tree] * 2)[0] == [0.0] * 2


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_on_a_mesh_the_correction_is_that_of_one_device(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    tx = optimizers.scale_by_fedhyper(0.9, normalize=True)
    deltas = [jnp.sin(jnp.arange(32.0).reshape(8, 4) * k) for k in (1, 2, 3)]
    wanted, _ = corrections(tx, deltas)
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec("x", "y"))
        got, updates = corrections(tx, [jax.device_put(d, where) for d in deltas])
        assert all(u.sharding == where for u in updates)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_the_servers_rate_for_its_clients():
    rate = optimizers.fedhyper_server_rate
    # The correction without bounds changes the rate of every round, not of none.
    tx = optimizers.scale_by_fedhyper(bounds=FREE)
    found, _ = corrections(tx, [jnp.array([2.0])] * 3)
    got = [rate(0.01, h) for h in found]
    np.testing.assert_allclose(got, [0.01, 0.05, 0.09], rtol=1e-6)
    assert rate(0.01, 99.0) == np.float32(0.1)
    assert rate(0.01, -3.0) == np.float32(1e-3)
    assert rate(0.01, 1.0, bounds=(0.0, 0.015)) == np.float32(0.015)


def test_the_clients_factor_by_hand():
    factor = optimizers.fedhyper_client_factor
    d, last, server = (jnp.array(x) for x in ([0.1, 0.2], [0.3, -0.2], [2.0, 1.0]))
    # <d, server> = 0.4, <d, last> = -0.01
    got = factor(2.0, d, last, server, clients=10)
    np.testing.assert_allclose(got, 2 * (1 + 0.1 * 0.4 / 10 - 0.01), rtol=1e-6)
    cosines = np.array([0.4 / 0.5, -0.01 / (0.05 * 0.13) ** 0.5])
    got = factor(2.0, d, last, server, clients=10, normalize=True)
    np.testing.assert_allclose(got, 2 * (1 + 0.01 * cosines[0] + cosines[1]), rtol=1e-6)
    assert factor(1.0, 9 * d, 9 * d, server, clients=10) == np.float32(1.1)
    assert factor(9.9, 9 * d, 9 * d, server, clients=10) == np.float32(10.0)
    assert factor(1.0, 9 * d, -9 * d, server, clients=10) == np.float32(0.1)
    assert factor(2.0, d * jnp.nan, last, server, clients=10) == 2.0


def test_a_local_step_carries_the_factor_under_jit_and_scan():
    rate, server = 0.01, {"w": jnp.full(2, 0.1)}

    def body(carry, g):
        factor, last = carry
        change = jax.tree.map(lambda g: -rate * factor * g, g)
        factor = optimizers.fedhyper_client_factor(
            factor, change, last, server, clients=10
        )
        return (factor, change), factor

    gradients = {"w": jnp.full((5, 2), -30.0, jnp.float32)}
    _, factors = jax.jit(lambda g: jax.lax.scan(body, (jnp.ones(()), server), g))(
        gradients
    )
    assert (np.diff(factors) > 0).all() and factors[-1] <= np.float32(1.1**5)


@pytest.mark.parametrize("bounds", [(0.1, 4.0), (-0.8, -0.1), (1.0, -1.0)])
def test_bounds_without_zero_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds must hold 0"):
        optimizers.scale_by_fedhyper(bounds=bounds)
