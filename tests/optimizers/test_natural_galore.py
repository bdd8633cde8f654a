"""Natural GaLore: its solve against a dense one, its history, its state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers, testing
from optlab.optimizers import _natural_galore
from tests.optimizers import trajectories


def dense(window, row, damping):
    fisher = damping * np.eye(window.shape[1]) + window.T @ window
    return np.linalg.solve(fisher, window[row])


def natural(window, row, damping=1e-3):
    return _natural_galore.natural_row(jnp.asarray(window)[None], row, damping)[0]


def test_a_history_of_one_gives_the_published_numbers():
    got = natural(np.array([[3.0, 4.0]], np.float32), 0)
    np.testing.assert_allclose(got, [0.1199952, 0.1599936], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("float64", 1e-10)])
@pytest.mark.parametrize("rows", [3, 12], ids="{} rows".format)
def test_equals_the_dense_solve(dtype, error, rows):
    window = np.random.default_rng(0).normal(size=(rows, 6))
    want = dense(window, 1, 1e-3)
    with jax.enable_x64(dtype == "float64"):
        got = natural(window.astype(dtype), 1)
    # Of more rows than coordinates some depend on others, up to the damping: rounding
    # then counts for |r|^2 / damping times as much.
    error *= 10 if rows > 6 else 1
    np.testing.assert_allclose(got, want, atol=error * np.abs(want).max())


def test_with_much_damping_it_is_the_gradient():
    window = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(1e6 * natural(window, 2, 1e6), window[2], rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_gradients_of_any_size_and_equal_ones_stay_finite(size):
    window = np.full((3, 2), size, np.float32)
    got = natural(window, 0)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, 0.0, atol=1e-26)


def test_the_history_keeps_the_latest_and_outlives_a_change_of_bases():
    grads = [{"kernel": jnp.asarray(g)} for g in trajectories.gradients((4, 6), 4)]
    tx = optimizers.scale_by_natural_galore(rank=2, every=2, history=3)
    state = tx.init(grads[0])
    for g in grads:
        before, (_, state) = state, tx.update(g, state)
    kept, new = before.window[0][0], state.window[0][0]
    np.testing.assert_array_equal(new[1:], kept[1:])  # the fourth replaces the first
    left, right = (b[0] for b in state.bases[0])
    low = left.T @ grads[-1]["kernel"] @ right
    np.testing.assert_allclose(new[0], low.ravel(), atol=1e-5)


def test_the_state_has_the_published_size():
    tx = optimizers.scale_by_natural_galore(rank=8)
    params = {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
    state = jax.eval_shape(tx.init, params)
    floats = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert floats == 8 * (64 + 32) + (2 + 20) * 8 * 8


def test_with_much_damping_the_step_is_that_of_galore_on_both_sides():
    grads = [{"kernel": jnp.asarray(g)} for g in trajectories.gradients((4, 6))]
    # Adam removes the factor 1 / damping, where eps does not keep it.
    ours = optimizers.galore(0.1, rank=2, side="both", eps=0.0)
    natural = optimizers.natural_galore(0.1, rank=2, damping=1e6, eps=0.0)
    params = jax.tree.map(jnp.zeros_like, grads[0])
    want, _ = trajectories.parameters(ours, params, grads, compiled=True)
    got, _ = trajectories.parameters(natural, params, grads, compiled=True)
    np.testing.assert_allclose(got[-1]["kernel"], want[-1]["kernel"], atol=1e-4)


def test_it_descends_where_the_damping_has_the_gradients_size():
    factory = functools.partial(
        optimizers.natural_galore, learning_rate=0.1, rank=4, every=10, damping=1e4
    )
    params = {"kernel": jnp.asarray(trajectories.gradients((4, 6))[0])}
    report = testing.check(
        factory, params, promises=["descends_quadratic"], print=False
    )
    report.raise_for_failures()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"history": 0}, "history must be an integer of 1 or more, got 0"),
        ({"rank": 0}, "rank must be an integer of 1 or more, got 0"),
        ({"decay_order": "before"}, r"decay_order must be one of .*got 'before'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_when_the_chain_is_built(argument, words):
    with pytest.raises(ValueError, match=words):
        optimizers.natural_galore(0.1, rest=optimizers.adamw(0.1), **argument)


def test_too_high_a_rank_names_the_leaf():
    with pytest.raises(ValueError, match=r"leaf 'kernel' has shape \(4, 6\).*rank=5"):
        optimizers.natural_galore(0.1, rank=5).init({"kernel": jnp.ones((4, 6))})
