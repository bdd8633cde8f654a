"""Dion: error feedback, orthonormal factors, and a basis that finds the top."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories


def low_rank(shape, rank, seed=0):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(shape[0], rank)), rng.normal(size=(rank, shape[1]))
    return {"kernel": jnp.asarray(left @ right, jnp.float32)}


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
@pytest.mark.parametrize("rank", [2, 4])
def test_a_momentum_of_low_rank_is_used_whole_and_fades(shape, rank):
    gradient = low_rank(shape, 2)
    tx = optimizers.scale_by_dion(rank=rank, b1=0.75)
    _, state = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(
        state.momentum["kernel"], 0.75 * gradient["kernel"], rtol=1e-5, atol=1e-5
    )


def test_what_a_step_of_low_rank_leaves_out_stays_in_the_momentum():
    gradient = {"kernel": jnp.asarray(trajectories.gradients((9, 6))[0])}
    tx = optimizers.scale_by_dion(rank=2, b1=0.0)
    updates, state = tx.update(gradient, tx.init(gradient))
    # What was used lies in the span of the update's left factor, the rest beside it.
    p = np.linalg.svd(updates["kernel"])[2][:2]
    left, whole = np.asarray(state.momentum["kernel"]), gradient["kernel"]
    np.testing.assert_allclose(left, whole - whole @ p.T @ p, atol=1e-5)
    np.testing.assert_allclose(left @ p.T, 0, atol=1e-5)
    assert np.linalg.matrix_rank(updates["kernel"], tol=1e-5) == 2


def test_at_full_rank_the_update_turns_into_the_polar_factor():
    gradient = {"kernel": jnp.asarray(trajectories.gradients((4, 4))[0])}
    tx = optimizers.scale_by_dion(rank=768, b1=0.0)
    state = tx.init(gradient)
    assert state.basis[0].shape == (1, 4, 4)
    # A power iteration on what does not change; b1 = 0 leaves nothing behind.
    for _ in range(60):
        updates, state = tx.update(gradient, state)
    u, _, v = np.linalg.svd(gradient["kernel"])
    np.testing.assert_allclose(updates["kernel"], u @ v, atol=1e-3)


def test_the_factor_is_the_root_of_fan_out_over_fan_in():
    gradient = low_rank((4, 16), 1)
    tx = optimizers.scale_by_dion(rank=1)
    updates, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(np.linalg.norm(updates["kernel"]), 2, rtol=1e-5)


def test_huge_and_tiny_momenta_have_the_same_direction():
    gradient = low_rank((6, 4), 3)
    tx = optimizers.scale_by_dion(rank=2, eps=0.0)
    state = tx.init(gradient)
    want, _ = tx.update(gradient, state)
    for factor in (2.0**90, 2.0**-90):
        scaled = jax.tree.map(lambda g, f=factor: f * g, gradient)
        got, after = tx.update(scaled, state)
        np.testing.assert_allclose(got["kernel"], want["kernel"], atol=1e-5)
        assert np.isfinite(after.momentum["kernel"]).all()


def test_a_zero_gradient_moves_nothing_and_the_basis_recovers():
    gradient = low_rank((6, 4), 2)
    zero = jax.tree.map(jnp.zeros_like, gradient)
    tx = optimizers.scale_by_dion(rank=2)
    updates, state = tx.update(zero, tx.init(zero))
    np.testing.assert_array_equal(updates["kernel"], 0)
    updates, state = tx.update(gradient, state)
    updates, state = tx.update(gradient, state)
    assert np.linalg.matrix_rank(updates["kernel"], tol=1e-4) == 2


def test_another_key_begins_with_another_basis():
    params = {"a": {"kernel": jnp.ones((6, 4))}, "b": {"kernel": jnp.ones((6, 4))}}
    first, other = (
        optimizers.scale_by_dion(rank=2, key=key).init(params).basis[0]
        for key in (None, jax.random.key(1))
    )
    assert first.shape == (2, 6, 2)
    np.testing.assert_array_equal(first[0], first[1])  # of one shape, of one basis
    assert np.abs(first - other).max() > 0.1


def test_a_rank_of_nothing_and_leaves_without_a_view_are_refused():
    for rank in (0, 1.5):
        with pytest.raises(ValueError, match=rf"rank must be 1 or more, got {rank}"):
            optimizers.dion(0.1, rank=rank, rest=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(2,\).*rest="):
        optimizers.dion(0.1).init({"bias": jnp.ones(2)})


def test_the_left_over_factors_are_orthonormal():
    gradient = {"kernel": jnp.asarray(trajectories.gradients((9, 6))[0])}
    tx = optimizers.scale_by_dion(rank=3, b1=0.0)
    updates, state = tx.update(gradient, tx.init(gradient))
    # u = sqrt(n / m) Q P^T; b1 = 0: what was used, R P^T, is what is missing.
    q = np.asarray(state.basis[0][0])
    p = (np.linalg.pinv(q) @ updates["kernel"]).T / np.sqrt(6 / 9)
    np.testing.assert_allclose(p.T @ p, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(q, axis=0), 1, rtol=1e-5)
