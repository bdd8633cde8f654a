"""Trajectory losses: the published number, the ring, its gate, what it never saw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import estimators
from tests.sharding import on_mesh

Z, PAST = jnp.array([[1.0, 0.0, -1.0]]), jnp.array([[2.0, 0.0, 0.0]])
LABEL = jnp.array([0])
RANDOM = np.random.default_rng(0)
read = jax.jit(estimators.recall)
write = jax.jit(estimators.remember)
saf_loss = jax.jit(estimators.saf_loss)


def distance(z, past, weight=1.0, **more):
    whole = saf_loss(z, past, LABEL, weight=weight, **more)
    return whole - saf_loss(z, past, LABEL, weight=0.0)


def test_the_distance_is_the_published_one():
    """The other direction of the divergence is 0.1077396854."""
    with jax.enable_x64(True):
        z, past = (jnp.asarray(np.asarray(x), float) for x in (Z, PAST))
        np.testing.assert_allclose(distance(z, past), 0.1050088269, atol=1e-9)
        np.testing.assert_allclose(distance(past, z), 0.1077396854, atol=1e-9)
        np.testing.assert_allclose(distance(z, past, 0.3), 0.0315026481, atol=1e-9)
    # A difference of two losses of 0.5.
    np.testing.assert_allclose(distance(Z, PAST), 0.1050088, rtol=1e-4)
    half = distance(Z.astype(jnp.bfloat16), PAST.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, 0.1050088, rtol=1e-4)


def test_gradients_flow_through_the_present_alone():
    t = 5.0
    z, past = jax.grad(saf_loss, argnums=(0, 1))(Z, PAST, LABEL, weight=0.3)
    np.testing.assert_array_equal(past, 0)
    soft = jax.nn.softmax
    wanted = soft(Z) - jnp.eye(3)[0] + 0.3 * t * (soft(Z / t) - soft(PAST / t))
    np.testing.assert_allclose(z, wanted, rtol=1e-5)
    # What agrees with its past feels the labels alone, at logits of any size.
    huge = 1e4 * Z
    loss, same = jax.value_and_grad(saf_loss)(huge, huge, LABEL)
    assert loss == 0
    np.testing.assert_allclose(same, 0, atol=1e-7)


def test_labels_may_be_probabilities_and_examples_unknown():
    z, past = (jnp.asarray(RANDOM.normal(size=(4, 3)), jnp.float32) for _ in "zp")
    labels, known = jnp.array([0, 2, 1, 1]), jnp.array([True, False, True, False])
    got = saf_loss(z, past, labels, known=known)
    soft = saf_loss(z, past, jax.nn.one_hot(labels, 3), known=known)
    np.testing.assert_allclose(got, soft, rtol=1e-6)
    each = [saf_loss(z[i], past[i], labels[i], weight=0.3 * known[i]) for i in range(4)]
    np.testing.assert_allclose(got, np.mean(each), rtol=1e-6)
    # What is no class has its distance alone.
    np.testing.assert_allclose(saf_loss(Z, PAST, LABEL - 1), 0.0315026, rtol=1e-4)


def test_outputs_come_back_after_lag_epochs_and_between_the_gates():
    """Ids 0 to 3 are seen in each epoch, 4 never; an output is epoch + id / 10."""
    buffer, ids = estimators.trajectory_buffer(5, 2, lag=3), jnp.arange(5)
    assert buffer.logits.shape == (4, 5, 2)
    known_in = []
    for epoch in range(10):
        past, known = read(buffer, ids, epoch, start=5, end=8)
        if known.any():
            known_in.append(epoch)
            np.testing.assert_array_equal(known, [True] * 4 + [False])
            wanted = (epoch - 3) + jnp.arange(5.0) / 10
            np.testing.assert_allclose(past[:4, 0], wanted[:4], rtol=1e-6)
        np.testing.assert_array_equal(past[~known], 0)
        # In another order, in two batches.
        for some in (jnp.array([3, 0]), jnp.array([1, 2])):
            logits = (epoch + some / 10)[:, None] * jnp.ones(2)
            buffer = write(buffer, some, logits, epoch)
    assert known_in == [6, 7]  # both gates are strict


def test_what_was_written_in_another_epoch_or_is_no_number_is_not_known():
    buffer = estimators.trajectory_buffer(3, 1, lag=1, dtype=jnp.bfloat16)
    ones = jnp.ones((3, 1))
    buffer = write(buffer, jnp.arange(3), ones.at[1].set(jnp.nan), 0)
    past, known = read(buffer, jnp.arange(3), 1, start=0)
    np.testing.assert_array_equal(known, [True, False, True])
    np.testing.assert_array_equal(past, [[1], [0], [1]])
    # Example 0 misses epoch 1: in epoch 2 its output of epoch 0 is too old.
    buffer = write(buffer, jnp.array([1, 2]), ones[:2], 1)
    np.testing.assert_array_equal(
        read(buffer, jnp.arange(3), 2, start=0)[1], [False, True, True]
    )
    assert not read(buffer, jnp.arange(3), 0, start=-9)[1].any()


def test_ids_that_are_none_are_neither_written_nor_known():
    buffer = estimators.trajectory_buffer(3, 1, lag=1)
    ids = jnp.array([-1, 1, 3, 99])
    after = write(buffer, ids, jnp.ones((4, 1)), 0)
    np.testing.assert_array_equal(after.epochs[0], [-1, 0, -1])
    np.testing.assert_array_equal(
        read(after, ids, 1, start=0)[1], [False, True, False, False]
    )


@on_mesh.BOTH
@pytest.mark.parametrize("cut", ["examples", "classes", "ids"])
def test_on_a_mesh_the_store_says_what_it_says_on_one_device(axis_type, cut):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    ids = jnp.asarray(RANDOM.permutation(16)[:8])
    logits = jnp.asarray(RANDOM.normal(size=(8, 8)), jnp.float32)
    labels = jnp.arange(8)

    def run(buffer, ids, logits, labels):
        buffer = write(buffer, ids, logits, 0)
        past, known = read(buffer, ids[::-1], 1, start=0)
        value = saf_loss(logits, past, labels, known=known)
        return buffer, past, known, value

    empty = functools.partial(estimators.trajectory_buffer, 16, 8, lag=1)
    wanted = run(empty(), ids, logits, labels)
    specs = {"examples": (None, "data"), "classes": (None, None, "data"), "ids": ()}
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(*specs[cut]))
        buffer = empty(device=place)
        batch = PartitionSpec() if cut == "classes" else PartitionSpec("data")
        batch = jax.device_put((ids, logits, labels), NamedSharding(mesh, batch))
        got = run(buffer, *batch)
        assert got[0].logits.sharding.is_equivalent_to(place, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)


def test_the_average_moves_in_float32_and_is_no_alias():
    params = {"w": jnp.ones(2, jnp.bfloat16), "steps": jnp.array(3)}
    average = estimators.averaged_weights(None, params)
    assert average["w"].dtype == jnp.float32
    moved = {"w": jnp.full(2, 2.0, jnp.bfloat16), "steps": jnp.array(4)}
    step = jax.jit(estimators.averaged_weights, donate_argnums=0)
    for _ in range(100):
        average = step(average, moved)
    np.testing.assert_allclose(average["w"], 2 - 0.9998**100, rtol=1e-6)
    assert average["steps"] == 4
    whole = {"w": jnp.ones(2)}
    start = estimators.averaged_weights(None, whole)
    assert start["w"].unsafe_buffer_pointer() != whole["w"].unsafe_buffer_pointer()


BUFFER = estimators.trajectory_buffer(3, 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: estimators.saf_loss(Z, PAST, LABEL, weight=-1), "weight must be 0 or"),
        (
            lambda: estimators.saf_loss(Z, PAST, LABEL, temperature=0),
            "temperature .* 0",
        ),
        (
            lambda: estimators.saf_loss(Z, PAST[:, :2], LABEL),
            r"past_logits has shape \(1, 2\), logits \(1, 3\)",
        ),
        (
            lambda: estimators.saf_loss(Z, PAST, jnp.array([0, 1])),
            r"labels has shape \(2,\), .* must be \(1,\) or \(1, 3\)",
        ),
        (
            lambda: estimators.saf_loss(Z, PAST, LABEL, known=jnp.ones(3)),
            r"known has shape \(3,\)",
        ),
        (lambda: estimators.trajectory_buffer(3, 2, lag=0), "lag must be 1 or more"),
        (
            lambda: estimators.remember(BUFFER, jnp.arange(2), jnp.ones((2, 3)), 0),
            r"logits of shape \(2, 3\) for ids of shape \(2,\); a store of 2 classes",
        ),
        (
            lambda: estimators.averaged_weights(None, Z, decay=1.0),
            "averaged_weights: decay must be at least 0 and below 1, got 1.0",
        ),
    ],
)
def test_what_makes_no_sense_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
