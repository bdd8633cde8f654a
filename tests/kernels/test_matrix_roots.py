"""Inverse roots against float64 eigendecompositions, identities, hostile inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

N = 6
EIGH, NEWTON = kernels.inverse_root, kernels.newton_inverse_root
# Compiled once for each p and dtype; all tests share the shapes.
COMPILED = {
    root: jax.jit(root, static_argnames=("p", "relative")) for root in (EIGH, NEWTON)
}

both = pytest.mark.parametrize("root", [EIGH, NEWTON], ids=["eigh", "newton"])


def matrix(condition, seed=0, n=N):
    """A symmetric matrix with eigenvalues from 1 / condition to 1, and those."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(1 / condition, 1, n)
    return (q * values) @ q.T


def oracle(x, p, ridge=0.0):
    values, vectors = np.linalg.eigh(np.asarray(x).astype(np.float64))
    return (vectors * (values + ridge) ** (-1 / p)) @ vectors.T


def gap(got, want):
    """Largest difference, relative to the largest entry."""
    got = np.asarray(got).astype(np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())


CASES = [(EIGH, 1), (EIGH, 2), (EIGH, 4), (EIGH, 2.5), (EIGH, 0.5)]
CASES += [(NEWTON, 1), (NEWTON, 2), (NEWTON, 4)]


@pytest.mark.parametrize(("root", "p"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_eigendecomposition_in_float64(root, p, dtype):
    with jax.enable_x64(dtype == "float64"):
        for condition in (1e2, 1e4):
            x = jnp.asarray(matrix(condition), dtype)
            got = COMPILED[root](x, p=p)
            assert got.dtype == x.dtype
            # The oracle sees the rounded x. An eigenvalue is known to eps of the
            # largest one, and its root to 1 / p of that.
            bound = 8 / p * condition * float(jnp.finfo(dtype).eps)
            assert gap(got, oracle(x, p)) < bound


def test_newton_equals_eigh_at_condition_1e4_to_1e_5():
    with jax.enable_x64(True):
        for condition in (1e2, 1e4, 1e6):
            x = jnp.asarray(matrix(condition))
            assert gap(COMPILED[NEWTON](x, p=4), oracle(x, 4)) < 1e-8
    x = jnp.asarray(matrix(1e4), jnp.float32)
    assert gap(COMPILED[NEWTON](x, p=4), oracle(x, 4)) < 1e-3


@both
def test_gives_the_published_root(root):
    x = jnp.diag(jnp.array([1.0, 16.0]))
    assert gap(root(x, 4), np.diag([1.0, 0.5])) < 1e-6


@both
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once_at_the_end(root, dtype):
    x = jnp.asarray(matrix(10), dtype)
    got = COMPILED[root](x, p=2)
    assert got.dtype == x.dtype
    assert gap(got, oracle(x, 2)) < float(jnp.finfo(dtype).eps)


@both
def test_a_batch_equals_a_loop(root):
    conditions = (1.0, 1e2, 1e3, 1e4)
    x = jnp.asarray([matrix(c, seed) for seed, c in enumerate(conditions)], jnp.float32)
    batch = COMPILED[root](x.reshape(2, 2, N, N), p=4).reshape(4, N, N)
    for i in range(4):
        assert gap(batch[i], COMPILED[root](x[i], p=4)) < 1e-5


@both
def test_turns_with_the_matrix(root):
    x = matrix(1e2)
    q = np.linalg.qr(np.random.default_rng(9).normal(size=(N, N)))[0]
    turned = COMPILED[root](jnp.asarray(q @ x @ q.T, jnp.float32), p=4)
    straight = np.asarray(COMPILED[root](jnp.asarray(x, jnp.float32), p=4))
    assert gap(turned, q @ straight @ q.T) < 8 * 1e2 * 1.2e-7


@both
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_the_scale_comes_out_as_its_own_root(root, scale):
    x = jnp.asarray(matrix(1e2), jnp.float32)
    got = COMPILED[root](x * scale, p=4)
    assert gap(got * scale**0.25, np.asarray(COMPILED[root](x, p=4))) < 1e-4


@both
def test_a_ridge_is_added_to_the_eigenvalues(root):
    x = matrix(1e2)
    wide = jnp.asarray(100 * x, jnp.float32)
    got = COMPILED[root](wide, p=2, ridge=3.0)
    assert gap(got, oracle(100 * x, 2, 3.0)) < 1e-5
    relative = COMPILED[root](wide, p=2, ridge=0.03, relative=True)
    assert gap(relative, oracle(100 * x, 2, 3.0)) < 1e-4


@both
def test_zero_gives_the_root_of_the_ridge_or_zero(root):
    zero = jnp.zeros((N, N))
    np.testing.assert_array_equal(COMPILED[root](zero, p=4), 0)
    want = np.eye(N) * 1e-6**-0.25
    assert gap(COMPILED[root](zero, p=4, ridge=1e-6), want) < 1e-5
    np.testing.assert_array_equal(
        COMPILED[root](zero, p=4, ridge=1e-6, relative=True), 0
    )


def test_rank_one_is_finite_and_right_on_its_range():
    v = np.random.default_rng(0).normal(size=N)
    x = jnp.asarray(np.outer(v, v), jnp.float32)
    root = COMPILED[EIGH](x, p=4)
    assert np.isfinite(root).all()
    np.testing.assert_allclose(root @ v, v * (v @ v) ** -0.25, rtol=1e-3, atol=1e-4)
    # No more than the limit of rounding to the power -1/4, 34 at n = 6.
    largest = np.linalg.norm(root, 2) * (v @ v) ** 0.25
    assert 30 < largest < 36
    # Newton raises the ridge until it succeeds.
    newton = COMPILED[NEWTON](x, p=4)
    assert np.isfinite(newton).all()
    np.testing.assert_allclose(newton @ v, v * (v @ v) ** -0.25, rtol=2e-2, atol=2e-2)


@both
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_matrix(root, poison):
    x = np.stack([matrix(1e2, seed) for seed in range(3)])
    x[1, 2, 2] = poison
    got = np.asarray(COMPILED[root](jnp.asarray(x, jnp.float32), p=4))
    assert np.isnan(got[1]).any()
    for i in (0, 2):
        assert gap(got[i], oracle(x[i], 4)) < 1e-4


def test_a_root_that_does_not_converge_is_nan():
    # Not positive definite: no ridge of six tries reaches half the spectrum.
    bad = jnp.diag(jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, -0.5]))
    assert np.isnan(COMPILED[NEWTON](bad, p=4)).all()


def test_no_entries_no_work():
    for shape in ((0, 0), (0, 4, 4), (3, 0, 0)):
        assert EIGH(jnp.zeros(shape)).shape == shape
        assert NEWTON(jnp.zeros(shape)).shape == shape


@both
def test_bad_arguments_are_refused(root):
    with pytest.raises(ValueError, match=r"square matrices.*\(2, 3\)"):
        root(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="floating dtype, got int32"):
        root(jnp.ones((2, 2), jnp.int32))
    with pytest.raises(ValueError, match="p must be positive, got 0"):
        root(jnp.eye(2), 0)
    with pytest.raises(ValueError, match=r"p must be an integer, got 2\.5"):
        NEWTON(jnp.eye(2), 2.5)


def test_products_are_exact_float32_and_never_narrower():
    x = jnp.eye(N, dtype=jnp.bfloat16)
    for root in (EIGH, NEWTON):
        text = jax.jit(functools.partial(root, p=4)).lower(x).as_text()
        dots = [line for line in text.splitlines() if "dot_general" in line]
        assert dots
        assert not any("bf16" in line for line in dots)
        wide = [line for line in dots if "HIGHEST, HIGHEST" in line]
        assert wide == dots
