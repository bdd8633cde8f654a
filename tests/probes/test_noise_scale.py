"""The gradient noise scale: its numbers, its averages, and what noise does to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import optimizers, probes
from tests.probes import net
from tests.sharding import on_mesh

SMALL, BIG = 4, 64


@functools.cache
def drawn():
    """Squared norms of means of 4 and of 64 gradients, of which |G|^2 = 1, tr = 10."""

    def one(key):
        parts = jax.random.normal(key, (BIG // SMALL, 1000)) * jnp.sqrt(0.01 / SMALL)
        parts = parts + jnp.sqrt(1e-3)
        return jnp.mean(jnp.sum(parts**2, 1)), jnp.sum(jnp.mean(parts, 0) ** 2)

    keys = jax.random.split(net.KEY, 2000)
    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))(keys)


def test_signal_and_noise_of_known_gradients_are_found():
    small, big = drawn()
    found = probes.gradient_noise_scale(small, big, small_batch=SMALL, big_batch=BIG)
    signal, noise = np.mean(found.gradient_sq), np.mean(found.noise)
    assert abs(noise - 10) < 0.1
    assert abs(signal - 1) < 0.02
    assert abs(noise / signal - 10) < 0.2


def test_the_record_averages_both_numbers_and_never_their_quotients():
    small, big = drawn()
    decay = 0.99
    tx = probes.record_noise_scale(small_batch=SMALL, big_batch=BIG, decay=decay)

    def step(state, row):
        updates = jnp.sqrt(row[1])[None]
        return tx.update(updates, state, small_sq_norm=row[0])[1], state.noise_scale

    state, _ = jax.lax.scan(step, tx.init(None), (small, big))
    found = probes.gradient_noise_scale(small, big, small_batch=SMALL, big_batch=BIG)
    weights = decay ** np.arange(len(small))[::-1]
    means = [np.average(x, weights=weights) for x in (found.gradient_sq, found.noise)]
    np.testing.assert_allclose([state.gradient_sq, state.noise], means, rtol=1e-4)
    np.testing.assert_allclose(state.noise_scale, means[1] / means[0], rtol=1e-4)
    assert (state.count, state.observed) == (2000, 2000)
    assert abs(state.noise_scale - 10) < 1


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ((5.0, 2.0), (1.0, 4.0, 4.0)),
        ((8.0, 1.0), (-4 / 3, 28 / 3, np.inf)),
        ((1.0, 2.0), (7 / 3, -4 / 3, 0.0)),
        ((0.0, 0.0), (0.0, 0.0, np.inf)),
        ((np.nan, 2.0), (np.nan, np.nan, np.inf)),
    ],
    ids=["published", "lost in the noise", "no noise", "zero", "no number"],
)
def test_no_batch_size_is_negative(numbers, wanted):
    found = probes.gradient_noise_scale(*numbers, small_batch=1, big_batch=4)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_updates_with_numbers_that_are_none_are_left_out():
    tx = probes.record_noise_scale(small_batch=1, big_batch=4)
    g = jnp.array([1.0, 1.0])
    state = tx.init(g)
    assert np.isinf(state.noise_scale)
    for bad, small in ((jnp.nan * g, 5.0), (g, jnp.inf), (jnp.inf * g, 5.0)):
        _, state = tx.update(bad, state, small_sq_norm=small)
        assert np.isinf(state.noise_scale)
    updates, state = tx.update(g, state, small_sq_norm=5.0)
    assert updates is g
    assert (state.count, state.observed, state.noise_scale) == (4, 1, 4.0)


def test_microbatches_give_the_gradient_and_the_norms_of_their_parts():
    found = jax.jit(probes.microbatch_gradient, static_argnums=0)(
        net.loss, net.PARAMS, net.DATA
    )
    value, grads = jax.value_and_grad(net.loss)(net.PARAMS, net.WHOLE)
    np.testing.assert_allclose(found.value, value, rtol=1e-6)
    np.testing.assert_allclose(net.flat(found.grads), net.flat(grads), atol=1e-6)
    each = jax.vmap(jax.grad(net.loss), (None, 0))(net.PARAMS, net.DATA)
    squares = [
        np.sum(net.flat(jax.tree.map(lambda x, i=i: x[i], each)) ** 2)
        for i in range(net.BATCHES)
    ]
    np.testing.assert_allclose(found.small_sq_norm, np.mean(squares), rtol=1e-5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), net.PARAMS)
    found = probes.microbatch_gradient(net.loss, half, net.DATA)
    assert found.small_sq_norm.dtype == jnp.float32
    assert found.grads["scale"].dtype == jnp.bfloat16


def noisy_step(tx):
    @jax.jit
    def step(params, state, batches):
        found = probes.microbatch_gradient(net.loss, params, batches)
        updates, state = tx.update(
            found.grads, state, params, small_sq_norm=found.small_sq_norm
        )
        return optax.apply_updates(params, updates), state

    return step


@on_mesh.BOTH
def test_on_a_mesh_the_numbers_are_those_of_one_device(axis_type):
    sizes = {"small_batch": net.EXAMPLES, "big_batch": net.BATCHES * net.EXAMPLES}
    record = probes.record_noise_scale(**sizes)
    tx = optax.chain(record, optimizers.sgd(0.1))
    step = noisy_step(tx)
    wanted, alone = step(net.PARAMS, tx.init(net.PARAMS), net.DATA)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        params = jax.device_put(net.PARAMS, NamedSharding(mesh, PartitionSpec()))
        rows = NamedSharding(mesh, PartitionSpec(None, "data"))
        state = jax.jit(tx.init)(params)
        got, state = jax.block_until_ready(
            step(params, state, jax.device_put(net.DATA, rows))
        )
    np.testing.assert_allclose(
        net.flat(jax.device_get(got)), net.flat(wanted), atol=1e-6
    )
    np.testing.assert_allclose(jax.device_get(state[0]), alone[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: record(small_batch=4), ValueError, "small_batch < big_batch, got 4"),
        (lambda: record(small_batch=0), ValueError, "got 0 and 4"),
        (lambda: record(decay=1.0), ValueError, "decay must be at least 0 and below 1"),
        (lambda: record().update(0, None), TypeError, "small_sq_norm=number"),
        (
            lambda: probes.gradient_noise_scale(1, 1, small_batch=8, big_batch=4),
            ValueError,
            "gradient_noise_scale: .* got 8 and 4",
        ),
        (
            lambda: probes.microbatch_gradient(
                net.loss, net.PARAMS, {"x": np.ones((3, 1)), "y": np.ones((2, 1))}
            ),
            ValueError,
            r"'x': \(3, 1\), 'y': \(2, 1\)",
        ),
    ],
)
def test_what_makes_no_sense_is_named(call, error, said):
    with pytest.raises(error, match=said):
        call()


def record(**settings):
    return probes.record_noise_scale(**{"small_batch": 1, "big_batch": 4, **settings})
