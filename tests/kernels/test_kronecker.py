"""Products along axes, and blocks, against NumPy."""

import string

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

RNG = np.random.default_rng(0)
SHAPES = [(4,), (3, 4), (2, 3, 4), (2, 3, 4, 2)]


def dense(factors):
    """The Kronecker product itself."""
    product = np.eye(1)
    for factor in factors:
        product = np.kron(product, np.diag(factor) if factor.ndim == 1 else factor)
    return product


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transpose", [False, True])
def test_equals_the_kronecker_product(shape, transpose):
    x = RNG.normal(size=(2, *shape))
    factors = [RNG.normal(size=(2, n, n)[: 3 if n != 3 else 2]) for n in shape]
    got = kernels.kronecker_apply(
        jnp.asarray(x, jnp.float32),
        [jnp.asarray(f, jnp.float32) for f in factors],
        transpose=transpose,
    )
    for i in range(2):
        product = dense([f[i] for f in factors])
        product = product.T if transpose else product
        want = (product @ x[i].ravel()).reshape(shape)
        bound = 8 * 1.2e-7 * np.linalg.norm(product, 2) * np.linalg.norm(x[i])
        np.testing.assert_allclose(got[i], want, atol=bound)


def test_none_is_the_identity_and_half_precision_is_rounded_once():
    x = jnp.asarray(RNG.normal(size=(3, 4)), jnp.bfloat16)
    np.testing.assert_array_equal(kernels.kronecker_apply(x, [None, None]), x)
    factor = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
    got = kernels.kronecker_apply(x, [None, factor])
    assert got.dtype == jnp.bfloat16
    want = x.astype(jnp.float32) @ factor.T
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_contract_all_other_axes(shape):
    x = RNG.normal(size=(2, *shape))
    letters = string.ascii_lowercase[: len(shape)]
    for axis in range(len(shape)):
        other = letters.replace(letters[axis], "z")
        want = np.einsum(f"k{letters},k{other}->k{letters[axis]}z", x, x)
        wide = jnp.asarray(x, jnp.float32)
        got = kernels.axis_product(wide, axis, len(shape))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        diagonal = kernels.axis_product(wide, axis, len(shape), diagonal=True)
        want = np.diagonal(want, axis1=-2, axis2=-1)
        np.testing.assert_allclose(diagonal, want, rtol=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 5, 4), (1, 4, 4), (2, 7), (1, 3, 5, 2), (2, 0, 3)]
)
@pytest.mark.parametrize("block_size", [1, 2, 3, 100])
def test_blocks_are_cut_and_put_together(shape, block_size):
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    blocks = kernels.split_blocks(x, block_size, len(shape) - 1)
    assert sum(block.size for block in blocks) == x.size
    assert max(max(block.shape[1:]) for block in blocks) <= block_size
    merged = kernels.merge_blocks(blocks, shape, block_size)
    np.testing.assert_array_equal(merged, x)


def test_a_block_is_a_piece_of_the_matrix():
    x = jnp.arange(40.0).reshape(2, 5, 4)
    whole, rest = kernels.split_blocks(x, 2)
    np.testing.assert_array_equal(whole[1], x[0, :2, 2:])
    np.testing.assert_array_equal(whole[4], x[1, :2, :2])
    np.testing.assert_array_equal(rest[1], x[0, 4:, 2:])


def test_bad_arguments_are_refused():
    x = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"its factor 1 needs \(2, 4, 4\).*\(2, 3\)"):
        kernels.kronecker_apply(x, [None, jnp.ones((2, 3))])
    with pytest.raises(ValueError, match="4 factors do not fit"):
        kernels.kronecker_apply(x, [None] * 4)
    with pytest.raises(ValueError, match="axis 2 is not one of 2"):
        kernels.axis_product(x, 2)
    for size in (0, 1.5):
        with pytest.raises(ValueError, match=f"integer of 1 or more, got {size}"):
            kernels.split_blocks(x, size)
    with pytest.raises(ValueError, match="r = 1"):
        kernels.split_blocks(x, 2, order=1)
