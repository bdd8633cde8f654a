"""Sparse fine-tuning: frozen bits, the second choice, one polar factor a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import kernels, optimizers, wrappers
from tests.optimizers import trajectories

W = np.array([5e-4, -1e-2, 1e-3], np.float32)


def bits(x):
    return np.asarray(x).view(f"uint{8 * x.dtype.itemsize}")


def walk(tx, w, grads):
    """Parameters after each gradient, of a compiled scan, and the last state."""

    def body(carry, g):
        w, state = carry
        updates, state = tx.update(g, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    run = jax.jit(lambda w, grads: jax.lax.scan(body, (w, tx.init(w)), grads))
    (_, state), points = run(w, grads)
    return points, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_frozen_entries_keep_their_bits_under_weight_decay(dtype):
    inner = optimizers.adamw(1e-4, weight_decay=0.5)
    # Frozen as well: a minus zero, in a leaf of which nothing is near zero enough.
    w = {"w": jnp.asarray(W, dtype), "far": jnp.asarray([-0.0, 3.0], dtype)}
    grads = jax.tree.map(lambda x: jnp.ones((100, *x.shape), x.dtype), w)
    tx = wrappers.sparse_finetuning(inner, 2e-3)
    points, _ = walk(tx, {"w": w["w"]}, {"w": grads["w"]})
    assert np.all(bits(points["w"])[:, 1] == bits(w["w"])[1])
    assert np.all(bits(points["w"])[-1, [0, 2]] != bits(w["w"])[[0, 2]])
    still, _ = walk(wrappers.sparse_finetuning(inner, 0.0), w, grads)
    assert np.all(bits(still["far"]) == bits(w["far"]))
    # The minus zero would not survive an update of plus zero.
    assert np.signbit(still["far"][-1, 0]) and not np.signbit(w["far"][0] + 0.0)


def test_a_method_that_mixes_entries_moves_trained_ones_only():
    (w,) = map(jnp.asarray, trajectories.gradients((6, 4), steps=1))
    tx = wrappers.sparse_finetuning(optimizers.muon(0.1, weight_decay=0.1), 1.0)
    updates, state = tx.update({"kernel": w + 1}, tx.init({"kernel": w}), {"kernel": w})
    moved = np.asarray(updates["kernel"]) != 0
    np.testing.assert_array_equal(moved, np.abs(w) < 1.0)
    np.testing.assert_array_equal(state.trained["kernel"], np.abs(w) < 1.0)
    assert 0 < moved.sum() < moved.size


def test_at_the_second_choice_what_has_grown_stops_and_the_rest_goes_on():
    w = jnp.array([0.0, 0.0, 0.5, -3.0])
    # The first entry grows by 0.1 a step, the second swings, the third shrinks.
    grads = jnp.array([[-1.0, (-1.0) ** t, 1.0, 1.0] for t in range(10)])
    make = functools.partial(wrappers.sparse_finetuning, optimizers.adamw(0.1), 0.6)
    plain, _ = walk(make(), w, grads)
    got, state = walk(make(progressive_iter=7), w, grads)
    np.testing.assert_array_equal(got[:7], plain[:7])
    assert np.abs(plain[5:7, 0]).min() > 0.59 and np.abs(plain[:, 1]).max() < 0.6
    # The eighth update is the first under the new mask.
    np.testing.assert_array_equal(got[7:, 0], np.full(3, plain[6, 0]))
    np.testing.assert_array_equal(got[:, 1:], plain[:, 1:])
    np.testing.assert_array_equal(state.trained, [False, True, True, False])
    again, _ = walk(make(progressive_iter=10), w, grads)
    np.testing.assert_array_equal(again, plain)


SHAPES = {"up": (6, 4), "down": (4, 6), "same": (6, 4), "small": (3, 9), "bias": (4,)}


def pulled(orthogonalize=None, count=3):
    """Updates of the second term alone, with weights drawn at random."""
    w = {
        name: {"kernel" if len(shape) > 1 else "bias": jnp.asarray(x)}
        for name, shape in SHAPES.items()
        for x in trajectories.gradients(shape, steps=1)
    }
    tx = wrappers.sparse_finetuning(
        *(optax.sgd(1.0), 2.0),
        **{"lambda_rank": 0.5, "min_side": 3, "orthogonalize": orthogonalize},
    )
    zero, state, seen = jax.tree.map(jnp.zeros_like, w), tx.init(w), []
    step = jax.jit(tx.update)
    for _ in range(count):
        updates, state = step(zero, state, w)
        seen.append(updates)
    return w, seen


def test_each_step_pulls_on_one_matrix_along_its_polar_factor():
    w, seen = pulled(count=12)
    drawn = []
    for updates in seen:
        (name,) = (k for k, u in updates.items() if np.any(jax.tree.leaves(u)[0]))
        drawn.append(name)
        x = np.asarray(w[name]["kernel"], np.float64)
        u, _, vt = np.linalg.svd(x * (np.abs(x) < 2.0), full_matrices=False)
        want = -0.5 * (np.abs(x) < 2.0) * (u @ vt)
        np.testing.assert_allclose(updates[name]["kernel"], want, atol=1e-5)
    # Never the one with a side of 3, nor what is no matrix.
    assert set(drawn) == {"up", "down", "same"}


def test_newton_schulz_is_near():
    fast = functools.partial(kernels.newton_schulz, coefficients="accurate")
    for got, want in zip(pulled(fast)[1], pulled()[1], strict=True):
        for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
            np.testing.assert_allclose(a, b, atol=0.5 * 0.14)


def test_there_is_no_pull_where_the_rank_is_zero_nor_without_a_matrix():
    w = {"kernel": jnp.zeros((4, 4)).at[0, 0].set(0.5)}
    tx = wrappers.sparse_finetuning(optax.sgd(1.0), 1.0, lambda_rank=1.0, min_side=0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)
    want = np.zeros((4, 4))
    want[0, 0] = -1.0
    np.testing.assert_allclose(updates["kernel"], want, atol=1e-7)
    v = jnp.zeros(3)
    updates, _ = tx.update(jnp.ones(3), tx.init(v), v)
    np.testing.assert_array_equal(updates, -1.0)


def test_the_rate_of_the_authors():
    assert wrappers.sara_learning_rate(2e-3) == pytest.approx(4.965853e-4, rel=1e-7)
    traced = jax.jit(wrappers.sara_learning_rate)(2e-3)
    assert float(traced) == pytest.approx(4.965853e-4, rel=1e-6)
    # For adamw.py's default threshold of 100.
    assert wrappers.sara_learning_rate(100.0) == 0.0


def test_nine_bytes_an_entry_around_adamw():
    tx = wrappers.sparse_finetuning(optimizers.adamw(1e-3), lambda_rank=5e-4)
    got = trajectories.state_bytes(tx, {"kernel": jnp.ones((64, 64))})
    assert got == 9 * 64**2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threshold": -1e-3}, r"threshold must be 0 or more, got -0\.001"),
        ({"lambda_rank": -1.0}, r"lambda_rank must be 0 or more, got -1\.0"),
        ({"progressive_iter": 0}, "progressive_iter must be 1 or more.* got 0"),
        ({"progressive_iter": -1}, "or None for no second choice; got -1"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(given, said):
    with pytest.raises(ValueError, match=f"sparse_finetuning: .*{said}"):
        wrappers.sparse_finetuning(optax.identity(), **given)


def test_missing_parameters_are_named():
    tx = wrappers.sparse_finetuning(optax.sgd(0.1))
    with pytest.raises(TypeError, match="sparse_finetuning: needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
