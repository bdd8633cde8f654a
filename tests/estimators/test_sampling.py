"""Poisson batches: every example with its probability, on its own, wherever drawn."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from optlab import estimators
from tests.sharding import on_mesh

KEY = jax.random.key(3)
N, DRAWS = 12, 20_000


@functools.cache
def drawn_often(rate, capacity=N):
    """Which of twelve examples are in each of many batches, and the sizes drawn."""

    def one(key):
        batch = estimators.poisson_batch(key, N, sampling_rate=rate, capacity=capacity)
        places = jnp.where(batch.valid, batch.indices, N)
        return jnp.zeros(N, bool).at[places].set(True, mode="drop"), batch

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, DRAWS))


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.9])
def test_each_example_is_drawn_with_its_probability_on_its_own(rate):
    taken, batch = drawn_often(rate)
    slack = 5 * math.sqrt(rate * (1 - rate) / DRAWS)
    np.testing.assert_allclose(taken.mean(0), rate, atol=slack)
    correlation = np.corrcoef(np.asarray(taken).T) - np.eye(N)
    assert np.abs(correlation).max() < 5 / math.sqrt(DRAWS)
    sizes = np.bincount(np.asarray(batch.drawn), minlength=N + 1)
    wanted = DRAWS * stats.binom.pmf(np.arange(N + 1), N, rate)
    often = wanted > 5
    chi = ((sizes - wanted)[often] ** 2 / wanted[often]).sum()
    assert chi < stats.chi2.ppf(0.9999, often.sum())


def test_a_batch_is_what_was_drawn_in_order_filled_up():
    taken, batch = drawn_often(0.5)
    np.testing.assert_array_equal(batch.valid.sum(1), batch.drawn)
    np.testing.assert_array_equal(taken.sum(1), batch.drawn)
    assert np.all(np.asarray(batch.indices)[~np.asarray(batch.valid)] == 0)
    assert batch.indices.dtype == batch.drawn.dtype == jnp.int32


def test_what_is_drawn_above_the_capacity_is_seen():
    few, short = drawn_often(0.5, 4)
    all_of_them, whole = drawn_often(0.5)
    np.testing.assert_array_equal(short.drawn, whole.drawn)
    np.testing.assert_array_equal(few.sum(1), np.minimum(whole.drawn, 4))
    first = np.cumsum(all_of_them, 1) <= 4
    np.testing.assert_array_equal(few, all_of_them & first)


def test_all_are_drawn_at_a_rate_of_one_and_a_small_rate_is_not_rounded_up():
    taken, _ = drawn_often(1.0)
    assert np.all(taken)
    taken, _ = drawn_often(2.0**-32)
    assert not np.any(taken)


def test_the_stated_bound_holds_for_draws_above_the_capacity():
    for n, rate in ((1000, 0.004), (1000, 0.064), (10_000, 0.0256), (40, 0.5)):
        expected = n * rate
        for t in (
            math.sqrt(expected),
            3 * math.sqrt(expected),
            10 * math.sqrt(expected),
        ):
            bound = math.exp(-(t**2) / (2 * expected + 2 * t / 3))
            assert stats.binom.sf(math.ceil(expected + t), n, rate) <= bound
    for expected, most in ((4, 1e-8), (64, 1e-15)):
        t = 10 * math.sqrt(expected)
        assert math.exp(-(t**2) / (2 * expected + 2 * t / 3)) < most


def test_the_mean_over_batches_is_the_gradient_of_all_examples():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(N, 3)), jnp.float32)

    def one(key):
        batch = estimators.poisson_batch(key, N, sampling_rate=0.5, capacity=N)
        return estimators.private_gradient(
            jnp.dot,
            jnp.zeros(3),
            rows[batch.indices],
            key,
            clip=100.0,
            noise_multiplier=0.0,
            batch_size=0.5 * N,
            valid=batch.valid,
        ).grads

    grads = jax.jit(jax.vmap(one))(jax.random.split(KEY, DRAWS))
    slack = 5 * np.asarray(grads).std(0) / math.sqrt(DRAWS)
    assert np.all(np.abs(grads.mean(0) - rows.mean(0)) < slack)


@on_mesh.BOTH
def test_every_host_draws_the_same(axis_type):
    draw = jax.jit(
        lambda key: estimators.poisson_batch(key, 1000, sampling_rate=0.05, capacity=96)
    )
    wanted = draw(KEY)
    mesh = on_mesh.mesh_of(axis_type)
    with jax.set_mesh(mesh):
        key = jax.device_put(KEY, NamedSharding(mesh, PartitionSpec()))
        got = jax.block_until_ready(draw(key))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


BAD = {
    "key must be one typed key": (TypeError, {"key": 3}),
    "data_size must be an integer, got 12.0": (TypeError, {"data_size": 12.0}),
    "data_size must be 1 or more, got 0": (ValueError, {"data_size": 0}),
    "capacity must be an integer, got True": (TypeError, {"capacity": True}),
    "capacity must be 1 or more, got -1": (ValueError, {"capacity": -1}),
    "at least 2^-32 and at most 1, got 64": (ValueError, {"sampling_rate": 64}),
    "at least 2^-32 and at most 1, got 0": (ValueError, {"sampling_rate": 0}),
    "at least 2^-32 and at most 1, got nan": (ValueError, {"sampling_rate": math.nan}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    error, changes = BAD[message]
    arguments = {"key": KEY, "data_size": N, "sampling_rate": 0.5, "capacity": 8}
    arguments |= changes
    with pytest.raises(error, match=re.escape(message)):
        estimators.poisson_batch(
            arguments.pop("key"), arguments.pop("data_size"), **arguments
        )
