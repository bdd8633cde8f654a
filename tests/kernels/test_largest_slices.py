"""largest_slices against NumPy, its transpose, batches and hostile matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels


def twice(x):
    return 2 * x


def matrix(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_the_largest_rows_of_a_wide_matrix_go_through_the_kernel(fraction):
    x = matrix(5, 7)
    chosen = np.argsort(-np.abs(x).sum(axis=1))[: int(np.ceil(fraction * 5))]
    want = np.zeros_like(x)
    want[chosen] = 2 * x[chosen]
    got = kernels.largest_slices(twice, fraction)(jnp.asarray(x))
    np.testing.assert_array_equal(got, want)
    tall = kernels.largest_slices(twice, fraction)(jnp.asarray(x.T))
    np.testing.assert_array_equal(tall, want.T)


def test_a_batch_equals_a_loop_and_dtypes_are_kept():
    x = jnp.asarray(matrix(2, 3, 4, 6), jnp.bfloat16)
    kernel = kernels.largest_slices(twice, 0.5)
    got = kernel(x)
    assert got.dtype == jnp.bfloat16
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(got[i, j], kernel(x[i, j]))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_matrices_of_any_size_are_cut_alike(size):
    x = jnp.asarray(size * matrix(4, 6))
    got = kernels.largest_slices(lambda y: y / 2, 0.5)(x)
    assert np.isfinite(got).all()
    assert np.any(np.asarray(got) != 0, axis=1).sum() == (2 if size else 0)


def test_empty_ones_pass_and_fractions_out_of_range_are_refused():
    assert kernels.largest_slices(twice, 0.5)(jnp.ones((2, 0, 3))).shape == (2, 0, 3)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"in \(0, 1\], got {fraction}"):
            kernels.largest_slices(twice, fraction)
