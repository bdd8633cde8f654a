"""Eigenbases against float64, their null space, and power steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

N = 6
found = jax.jit(kernels.eigenbasis)
refreshed = jax.jit(kernels.refresh_eigenbasis)


def matrix(rank=N, seed=0):
    g = np.random.default_rng(seed).normal(size=(N, rank))
    return g @ g.T


def off_diagonal(x, q):
    """Largest entry off the diagonal of Q^T X Q, relative to the largest of X."""
    q = np.asarray(q).astype(np.float64)
    turned = q.T @ x @ q
    return np.abs(turned - np.diag(np.diag(turned))).max() / np.abs(x).max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [N, 4, 1, 0])
def test_diagonalises_in_falling_order(dtype, rank):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(matrix(rank), dtype)
        q = found(x)
        assert q.dtype == x.dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(q.T @ q, np.eye(N), atol=8 * eps)
        if rank:
            wide = np.asarray(x).astype(np.float64)
            assert off_diagonal(wide, q) < 16 * eps
            values = np.diag(np.asarray(q).T @ wide @ np.asarray(q))
            assert (np.diff(values) < 16 * eps * np.abs(wide).max()).all()


def test_the_null_space_is_not_left_to_rounding():
    x = jnp.asarray(matrix(rank=3), jnp.float32)
    q = found(x)
    nudged = found(x * (1 + 3e-7))
    # Up to signs the same columns, those without an eigenvalue too.
    np.testing.assert_allclose(np.abs(q), np.abs(nudged), atol=1e-4)
    # Rows that the range never covers are unit vectors.
    dead = x.at[2].set(0).at[:, 2].set(0)
    assert 1.0 in np.abs(found(dead))[2].round(6)
    given = jnp.asarray(np.linalg.qr(np.random.default_rng(3).normal(size=(N, N)))[0])
    mine = kernels.eigenbasis(x, given)
    np.testing.assert_allclose(mine.T @ mine, np.eye(N), atol=1e-6)


def test_zero_and_what_is_not_finite_give_unit_vectors():
    for bad in (0.0, jnp.nan, jnp.inf):
        x = jnp.full((N, N), bad)
        assert sorted(np.abs(found(x)).ravel().tolist()) == [0.0] * 30 + [1.0] * 6
        basis = found(jnp.asarray(matrix(), jnp.float32))
        moved, order = refreshed(x, basis)
        np.testing.assert_allclose(np.abs(moved), np.abs(basis), atol=1e-6)
        np.testing.assert_array_equal(order, np.arange(N))


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_the_scale_does_not_matter(scale):
    x = jnp.asarray(matrix(), jnp.float32)
    q = found(x)
    np.testing.assert_allclose(np.abs(found(scale * x)), np.abs(q), atol=1e-4)
    np.testing.assert_allclose(
        np.abs(refreshed(scale * x, q)[0]), np.abs(refreshed(x, q)[0]), atol=1e-4
    )


def test_a_batch_equals_a_loop():
    x = jnp.asarray([[matrix(r, 2 * r + s) for s in (0, 1)] for r in (6, 3)])
    batch, alone = found(x), [found(y) for y in x.reshape(4, N, N)]
    np.testing.assert_allclose(batch.reshape(4, N, N), alone, atol=1e-6)
    moved, order = refreshed(x, batch)
    for i, (y, q) in enumerate(zip(x.reshape(4, N, N), alone, strict=True)):
        one, one_order = refreshed(y, q)
        np.testing.assert_allclose(moved.reshape(4, N, N)[i], one, atol=1e-6)
        np.testing.assert_array_equal(order.reshape(4, N)[i], one_order)


def test_power_steps_equal_float64_and_converge():
    x = matrix()
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(N, N)))[0]
    quotients = np.diag(basis.T @ x @ basis)
    want = np.linalg.qr(x @ basis[:, np.argsort(-quotients)])[0]
    got, order = refreshed(jnp.asarray(x, jnp.float32), jnp.asarray(basis, jnp.float32))
    np.testing.assert_array_equal(order, np.argsort(-quotients))
    # The condition of the product decides.
    bound = 4 * np.linalg.cond(x) * 1.2e-7
    np.testing.assert_allclose(np.abs(got), np.abs(want), atol=bound)
    first = off_diagonal(x, got)
    for _ in range(30):
        got, order = refreshed(jnp.asarray(x, jnp.float32), got)
    assert off_diagonal(x, got) < 1e-3 * first
    np.testing.assert_array_equal(order, np.arange(N))


def test_half_precision_is_computed_in_float32():
    x = jnp.asarray(matrix(), jnp.bfloat16)
    q = found(x)
    assert q.dtype == jnp.bfloat16
    exact = found(x.astype(jnp.float32))
    np.testing.assert_array_equal(q, exact.astype(jnp.bfloat16))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"eigenbasis: .*square.*\(2, 3\)"):
        kernels.eigenbasis(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="floating dtype, got int32"):
        kernels.refresh_eigenbasis(jnp.ones((2, 2), int), jnp.eye(2))
    with pytest.raises(ValueError, match=r"basis has shape \(3, 3\), x has \(2, 2\)"):
        kernels.refresh_eigenbasis(jnp.eye(2), jnp.eye(3))
