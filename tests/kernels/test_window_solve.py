"""Window solves against dense float64 inverses and the authors' recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels


def fisher(window, damping):
    m, d = window.shape
    return damping * np.eye(d) + window.T @ window / m


def recursion(window, damping):
    """The authors' static algorithm: vectors h_i and denominators, row by row."""
    m, hs, denominators = len(window), [], []
    for g in window:
        h = g / damping
        for other, denominator in zip(hs, denominators, strict=True):
            h = h - (other @ g) / denominator * other
        hs.append(h)
        denominators.append(m + g @ h)
    return np.array(hs), np.array(denominators)


def unit_rows(window):
    norms = np.linalg.norm(window, axis=-1)
    rows = window / np.where(norms == 0, 1, norms)[..., None]
    return rows, norms


@pytest.fixture(scope="module")
def window():
    rows = np.random.default_rng(0).normal(size=(8, 50))
    rows[5:] = 0  # a window that is not full yet
    return rows


def test_two_gradients_give_the_numbers_of_a_diagonal():
    window = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    want = [2 / 3, 1 / 3]
    got = kernels.window_solve(window, jnp.ones(2), 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    got = kernels.window_inverse_diagonal(window, 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("damping", [1.0, 1e-5])
def test_all_forms_equal_a_dense_solve_and_the_recursion(window, damping):
    x = np.random.default_rng(1).normal(size=50)
    inverse = np.linalg.inv(fisher(window, damping))
    hs, denominators = recursion(window, damping)
    by_rows = x / damping - (hs @ x / denominators) @ hs
    diagonal = 1 / damping - np.sum(hs * hs / denominators[:, None], axis=0)
    rows, norms = unit_rows(window)
    newest = np.eye(8)[2]
    with jax.enable_x64(True):
        got = kernels.window_solve(jnp.asarray(window), jnp.asarray(x), damping)
        got_diagonal = kernels.window_inverse_diagonal(jnp.asarray(window), damping)
        weights = kernels.window_weights(
            *map(jnp.asarray, (rows @ rows.T, norms, newest)), damping
        )
    # The condition of the matrix, |g|^2 / (m damping), times some float64 rounding.
    tolerance = 16 * 2e-16 * max(1, 100 / 8 / damping)
    for values, want in ((got, inverse @ x), (got, by_rows)):
        np.testing.assert_allclose(values, want, atol=tolerance * abs(want).max())
    np.testing.assert_allclose(
        got_diagonal, np.diag(inverse), atol=tolerance * diagonal.max()
    )
    np.testing.assert_allclose(diagonal, np.diag(inverse), atol=1e-6 * diagonal.max())
    np.testing.assert_allclose(
        rows.T @ np.asarray(weights), inverse @ window[2], atol=tolerance / damping
    )


def test_weights_lose_nothing_where_the_difference_does(window):
    """Independent rows with a tiny damping: one form cancels, the other does not."""
    full = np.random.default_rng(2).normal(size=(8, 50))
    rows, norms = unit_rows(full)
    want = np.linalg.solve(fisher(full, 1e-3), full[2])
    gram = jnp.asarray(rows @ rows.T, jnp.float32)
    newest = jnp.zeros(8).at[2].set(1.0)
    weights = kernels.window_weights(
        gram, jnp.asarray(norms, jnp.float32), newest, 1e-3
    )
    largest = abs(want).max()
    # Condition of the scaled products, below 10, times float32 rounding.
    np.testing.assert_allclose(
        rows.T @ np.asarray(weights), want, atol=10 * 1.2e-7 * largest
    )
    short = jnp.asarray(full, jnp.float32)
    cancelled = kernels.window_solve(short, short[2], 1e-3)
    assert abs(np.asarray(cancelled) - want).max() > 1e-5 * largest


def test_leading_axes_are_blocks_of_their_own():
    blocks = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4, 6)), jnp.float32)
    x = blocks[:, 1] + 1.0
    got = kernels.window_solve(blocks, x, 0.1)
    diagonals = kernels.window_inverse_diagonal(blocks, 0.1)
    for block in range(3):
        want = kernels.window_solve(blocks[block], x[block], 0.1)
        np.testing.assert_allclose(got[block], want, rtol=1e-5, atol=1e-5)
        want = kernels.window_inverse_diagonal(blocks[block], 0.1)
        np.testing.assert_allclose(diagonals[block], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("rows", ["equal", "independent", "empty"])
def test_extreme_windows_are_finite(size, rows):
    drawn = np.random.default_rng(0).normal(size=(256, 300))
    window = {"equal": drawn[:1] + 0 * drawn, "independent": drawn, "empty": 0 * drawn}
    unit, norms = unit_rows(window[rows])
    gram, norms = jnp.asarray(unit @ unit.T, jnp.float32), jnp.asarray(size * norms)
    newest = jnp.zeros(256).at[0].set(1.0)
    for damping in (1e-5, 1.0):
        weights = kernels.window_weights(
            gram, norms.astype(jnp.float32), newest, damping
        )
        assert np.isfinite(weights).all()
        if rows == "empty":
            np.testing.assert_array_equal(weights, 0)


def test_the_dtype_of_what_comes_in_goes_out():
    window, x = jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3, jnp.bfloat16)
    assert kernels.window_solve(window, x, 1.0).dtype == jnp.bfloat16
    assert kernels.window_inverse_diagonal(window, 1.0).dtype == jnp.bfloat16
    # (1 + 3) x along x, in float32 on the way.
    np.testing.assert_array_equal(kernels.window_solve(window, x, 1.0), 0.25)
