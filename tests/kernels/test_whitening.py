"""Whitening steps, triangular solves and norm bounds against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

RNG = np.random.default_rng(0)
EPS = 1.2e-7


def triangular(size):
    return np.triu(RNG.normal(size=(2, size, size))) + 2 * np.eye(size)


def positive(size):
    return 1 + RNG.uniform(size=(2, size))


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_the_solve_undoes_the_transposed_product(shape):
    x = RNG.normal(size=(2, *shape))
    factors = [positive(n) if n == 3 else triangular(n) for n in shape]
    y = kernels.kronecker_solve(float32(x), float32(factors))
    got = kernels.kronecker_apply(y, float32(factors), transpose=True)
    condition = np.prod(
        [np.max(np.linalg.cond(f)) if f.ndim == 3 else 2 for f in factors]
    )
    bound = 4 * EPS * condition * np.abs(x).max()
    np.testing.assert_allclose(got, x, atol=bound)


def test_the_lower_part_is_not_read():
    q, x = triangular(4), RNG.normal(size=(2, 4))
    full = q + np.tril(np.full((4, 4), 7.0), -1)
    want = kernels.kronecker_solve(float32(x), [float32(q)])
    np.testing.assert_array_equal(
        kernels.kronecker_solve(float32(x), [float32(full)]), want
    )


def test_bounds_are_below_the_norm_and_near_it():
    for size in (1, 5, 40):
        a = RNG.normal(size=(3, size, size))
        probes = float32(RNG.normal(size=(3, 16, size)))
        for x in (a @ a.swapaxes(1, 2), a - a.swapaxes(1, 2)):
            norms = np.linalg.norm(x, 2, axis=(1, 2))
            for got, share in (
                (kernels.row_norm_bound(float32(x)), 0.6),
                (kernels.subspace_norm_bound(float32(x), probes), 0.8),
            ):
                assert np.all(got <= (1 + 1e-5) * norms)
                assert np.all(got >= share * norms)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_bounds_have_no_scale(scale):
    x, probes = jnp.full((3, 3), scale), jnp.ones((2, 3))
    want = pytest.approx(3 * scale, rel=1e-5)
    assert float(kernels.row_norm_bound(x)) == want
    assert float(kernels.subspace_norm_bound(x, probes)) == want


def oracle(geometry, x, v, q, size):
    """A step of the first factor of a matrix, which is full; no turn."""
    left, right = q
    if geometry == "EQ":
        a = left @ x @ right.T
        b = np.linalg.inv(left).T @ v @ np.linalg.inv(right)
        s, t = a @ a.T, b @ b.T
        return left - size * np.triu(s - t) @ left / np.linalg.norm(s + t, 2)
    y = left.T @ left @ x @ right.T @ right
    s, t = y @ y.T, len(x.T) * np.eye(len(x))
    if geometry == "QEP":
        s, t = left @ s @ left.T, left @ t @ left.T
        return left - size * (s - t) @ left / np.linalg.norm(s + t, 2)
    e = size * (s - t) / (np.linalg.norm(s, 2) + len(x.T))
    if geometry == "QUAD":
        half = np.eye(len(x)) - e / 2
        return half @ left @ half
    return left - left @ e if geometry == "QEQ" else left - e @ left


def exact_norm(x):
    return jnp.linalg.norm(x, 2, axis=(-2, -1))


@pytest.mark.parametrize("geometry", kernels.WHITENING_GEOMETRIES)
def test_a_step_is_that_of_the_equations(geometry):
    x, v = RNG.normal(size=(2, 2, 4, 3))
    q = [triangular(n) for n in (4, 3)]
    if geometry == "QUAD":
        q = [a @ a.swapaxes(1, 2) for a in q]
    # Of one largest entry: balancing leaves them.
    q = [a / np.abs(a).max(axis=(1, 2), keepdims=True) for a in q]
    norms = [jnp.zeros(2)] * 2
    new, _ = kernels.whitening_step(
        *float32((x, v, q)), norms, geometry=geometry, norm_bound=exact_norm
    )
    for i in range(2):
        want, got = oracle(geometry, x[i], v[i], [a[i] for a in q], 0.1), new[0][i]
        if geometry == "Q0.5EQ1.5":
            # Turned: Q^T Q is what is left, but for the third term of the series.
            want, got = want.T @ want, got.T @ got
            np.testing.assert_allclose(got, want, atol=5e-4)
            assert np.abs(new[0][i] - new[0][i].T).max() < np.abs(q[0][i]).max()
        else:
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("geometry", kernels.WHITENING_GEOMETRIES)
def test_a_diagonal_factor_moves_by_the_diagonals(geometry):
    x, v = RNG.normal(size=(2, 5))
    q = 1 + RNG.uniform(size=5)
    (got,), (norm,) = kernels.whitening_step(
        *float32((x, v)), float32([q]), [jnp.zeros(())], geometry=geometry
    )
    s, t = {
        "EQ": ((q * x) ** 2, (v / q) ** 2),
        "QEP": ((q**3 * x) ** 2, q**2),
    }.get(geometry, ((q**2 * x) ** 2, np.ones(5)))
    bound = (s + t).max()
    error = 0.1 * (s - t) / bound
    want = q * (1 - error / 2) ** 2 if geometry == "QUAD" else q - error * q
    np.testing.assert_allclose(norm, bound, rtol=1e-5)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_triangles_stay_exact_and_matrices_do_not_meet():
    x, v = float32(RNG.normal(size=(2, 2, 4, 3)))
    q = float32([triangular(4), triangular(3)])
    norms = [jnp.zeros(2)] * 2
    new, _ = kernels.whitening_step(x, v, q, norms)
    for factor in new:
        np.testing.assert_array_equal(factor, np.triu(factor))
    alone, _ = kernels.whitening_step(
        x[1], v[1], [a[1] for a in q], [jnp.zeros(())] * 2
    )
    np.testing.assert_allclose(new[0][1], alone[0], rtol=1e-5, atol=1e-6)


def test_balancing_leaves_the_product():
    q = [positive(4), 8 * triangular(3)]
    zero = jnp.zeros((2, 4, 3))
    # Neither gradient nor noise: what is left of a step is the balance.
    new, norms = kernels.whitening_step(zero, zero, float32(q), [jnp.zeros(2)] * 2)
    largest = [np.abs(a).max(axis=tuple(range(1, a.ndim))) for a in new]
    np.testing.assert_allclose(largest[0], largest[1], rtol=1e-5)
    for i in range(2):
        want = np.kron(np.diag(q[0][i]), q[1][i])
        got = np.kron(np.diag(new[0][i]), new[1][i])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(norms[0], 0)


def test_norms_fall_by_their_decay_and_rise_at_once():
    q, x = [jnp.ones(1)], jnp.ones(1)
    for last, want in ((10.0, 0.9 * 10 + 0.1 * 2), (1.0, 2.0)):
        _, (norm,) = kernels.whitening_step(
            x, x, q, [jnp.asarray(last)], norm_decay=0.9
        )
        assert float(norm) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, 1e30])
def test_what_would_not_be_finite_leaves_the_factor(value):
    x = jnp.full((2, 3, 3), 2.0).at[0].set(value)
    q = [jnp.stack([jnp.eye(3)] * 2)] * 2
    new, norms = kernels.whitening_step(x, jnp.ones((2, 3, 3)), q, [jnp.zeros(2)] * 2)
    np.testing.assert_array_equal(new[0][0], np.eye(3))
    np.testing.assert_array_equal(norms[0][0], 0)
    assert np.isfinite(new[0]).all() and np.any(new[0][1] != np.eye(3))


def test_half_precision_keeps_its_dtype():
    x = jnp.ones((3, 3), jnp.bfloat16)
    q = [jnp.eye(3, dtype=jnp.float32)] * 2
    assert kernels.kronecker_solve(x, q).dtype == jnp.bfloat16
    assert kernels.row_norm_bound(x).dtype == jnp.bfloat16
    new, _ = kernels.whitening_step(x, x, q, [jnp.zeros(())] * 2)
    assert new[0].dtype == jnp.float32


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"geometry must be .*'EQ'.*got 'QQ'"):
        kernels.whitening_step(
            jnp.ones(1), jnp.ones(1), [jnp.ones(1)], [jnp.zeros(())], geometry="QQ"
        )
    with pytest.raises(ValueError, match=r"square matrices.*got \(2, 3\)"):
        kernels.row_norm_bound(jnp.ones((2, 3)))
    with pytest.raises(ValueError):
        kernels.kronecker_solve(jnp.ones((2, 3)), [jnp.eye(2), jnp.eye(2)])
