"""Low-rank kernels against NumPy in float64, their identities and hostile inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

BASES = {
    "singular": kernels.singular_basis,
    "range": kernels.range_basis,
}
over_bases = pytest.mark.parametrize("find", BASES.values(), ids=BASES)


def matrix(m=6, n=9, spectrum=(4, 2, 1, 0.1, 0.05, 0.01), seed=0):
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(m, m)))[0]
    v = np.linalg.qr(rng.normal(size=(n, n)))[0]
    k = min(m, n)
    return (u[:, :k] * spectrum[:k]) @ v[:, :k].T


def projection(basis):
    basis = np.asarray(basis, np.float64)
    return basis @ basis.swapaxes(-1, -2)


@over_bases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
def test_the_range_is_that_of_the_leading_singular_vectors(find, dtype, shape):
    x = matrix(*shape)
    want = projection(np.linalg.svd(x, full_matrices=False)[0][:, :3])
    with jax.enable_x64(dtype == "float64"):
        got = find(jnp.asarray(x, dtype), 3)
    assert got.dtype == dtype and got.shape == (shape[0], 3)
    got = np.asarray(got, np.float64)
    eps = float(jnp.finfo(dtype).eps)
    # Vectors turn by rounding over the gap, 1 - 0.1; two power steps leave of the
    # others (0.1 / 1)^5, times what the sketch saw of them.
    error = 30 * eps if find is kernels.singular_basis else 2e-4
    np.testing.assert_allclose(projection(got), want, atol=error)
    np.testing.assert_allclose(got.T @ got, np.eye(3), atol=30 * eps)


@over_bases
def test_a_matrix_of_that_rank_is_kept_exactly(find):
    x = jnp.asarray(matrix(spectrum=(4, 2, 1, 0, 0, 0)), jnp.float32)
    left, right = find(x, 3), find(x.T, 3)
    both = kernels.lift(kernels.project(x, left, right), left, right)
    for got in (
        kernels.lift(kernels.project(x, left), left),
        kernels.lift(kernels.project(x, None, right), None, right),
        both,
    ):
        np.testing.assert_allclose(got, x, atol=4e-6)


def test_power_steps_bring_the_range_nearer():
    x = jnp.asarray(matrix(spectrum=(4, 3, 2, 1, 0.9, 0.8)), jnp.float32)
    want = projection(kernels.singular_basis(x, 3))
    errors = [
        np.abs(projection(kernels.range_basis(x, 3, power_steps=k)) - want).max()
        for k in (0, 2, 6)
    ]
    # Four more steps leave (1 / 2)^8 of what is beyond.
    assert errors[0] > errors[1] > 100 * errors[2]


def test_the_sketch_is_the_same_in_each_call_unless_a_key_is_given():
    x = jnp.asarray(matrix(), jnp.float32)
    same = [kernels.range_basis(x, 2, power_steps=0) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    other = kernels.range_basis(x, 2, key=jax.random.key(1), power_steps=0)
    assert np.abs(other - same[0]).max() > 1e-3


@over_bases
def test_a_batch_equals_the_loop(find):
    stack = jnp.asarray([[matrix(seed=i) for i in range(3)]], jnp.float32)
    got = find(stack, 2)
    assert got.shape == (1, 3, 6, 2)
    for i in range(3):
        np.testing.assert_allclose(
            projection(got[0, i]), projection(find(stack[0, i], 2)), atol=3e-6
        )


@over_bases
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_decomposed_in_float32(find, dtype):
    x = jnp.asarray(matrix(), dtype)
    got = find(x, 2)
    assert got.dtype == dtype
    want = find(x.astype(jnp.float32), 2)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.004)


@over_bases
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_bases_are_orthonormal_for_zero_tiny_and_huge_matrices(find, size):
    got = find(jnp.asarray(matrix() * size, jnp.float32), 2)
    np.testing.assert_allclose(got.T @ got, np.eye(2), atol=2e-6)
    if size:
        want = find(jnp.asarray(matrix(), jnp.float32), 2)
        np.testing.assert_allclose(projection(got), projection(want), atol=2e-5)


@over_bases
def test_what_is_no_matrix_of_that_rank_is_refused(find):
    name = find.__name__
    with pytest.raises(ValueError, match=rf"{name}: .*shape \(2, 3\).*got rank=3"):
        find(jnp.ones((2, 3)), 3)
    with pytest.raises(ValueError, match=rf"{name}: .*1 to 2 vectors, got rank=0"):
        find(jnp.ones((2, 3)), 0)
    with pytest.raises(ValueError, match=rf"{name}: needs an array of two or more"):
        find(jnp.ones(3), 1)
    with pytest.raises(TypeError, match=rf"{name}: needs a floating dtype, got int32"):
        find(jnp.ones((2, 3), jnp.int32), 1)


def test_negative_power_steps_are_refused():
    with pytest.raises(ValueError, match=r"power_steps must be 0 or more, got -1"):
        kernels.range_basis(jnp.ones((2, 3)), 1, power_steps=-1)


def test_lifting_is_the_transpose_of_projecting():
    rng = np.random.default_rng(0)
    x, left, right = (rng.normal(size=s) for s in ((4, 5), (4, 2), (5, 3)))
    low = rng.normal(size=(2, 3))
    inner = np.vdot(kernels.project(jnp.asarray(x), left, right), low)
    np.testing.assert_allclose(
        inner, np.vdot(x, kernels.lift(jnp.asarray(low), left, right)), rtol=1e-5
    )


# Norm growth


def norms_after(*norms, last=0.0):
    out, last = [], jnp.asarray(last)
    for norm in norms:
        x, last = kernels.limit_growth(jnp.full((2, 2), norm / 2), last)
        norm = np.linalg.norm(np.asarray(x, np.float64))
        np.testing.assert_allclose(norm, last, rtol=1e-6)
        out.append(float(last))
    return out


def test_a_norm_grows_by_one_per_cent_at_most():
    np.testing.assert_allclose(norms_after(1, 10, 1.015), [1, 1.01, 1.015], rtol=1e-6)
    np.testing.assert_allclose(norms_after(1, 0.5, 10), [1, 0.5, 0.505], rtol=1e-6)


def test_after_a_zero_the_norm_starts_afresh():
    np.testing.assert_allclose(norms_after(1, 0, 10), [1, 0, 10], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_of_any_size_are_limited(size):
    np.testing.assert_allclose(
        norms_after(size, 10 * size), [size, 1.01 * size], rtol=1e-6
    )


def test_a_matrix_that_is_not_finite_leaves_the_others_and_no_norm():
    x = jnp.ones((2, 2, 2)).at[0, 0, 0].set(jnp.nan)
    limited, norm = kernels.limit_growth(x, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(norm, [0, 1.01], rtol=1e-6)
    assert np.isfinite(limited[1]).all() and not np.isfinite(limited[0]).all()


def test_kernels_compile_under_vmap():
    stack = jnp.asarray([matrix(seed=i) for i in range(2)], jnp.float32)
    find = jax.jit(jax.vmap(functools.partial(kernels.singular_basis, rank=2)))
    np.testing.assert_allclose(
        projection(find(stack)), projection(kernels.singular_basis(stack, 2)), atol=3e-6
    )
