"""Power iteration and Lanczos: exact spectra, quadratures, early ends, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

SPECTRUM = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 10.0])


def symmetric(spectrum, seed=0):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(spectrum),) * 2))[0]
    return (q * spectrum) @ q.T


def reduced(matrix, start, order, dtype="float32"):
    with jax.enable_x64(dtype == "float64"):
        a = jnp.asarray(matrix, dtype)
        run = jax.jit(lambda v: kernels.lanczos(lambda x: a @ x, v, order))
        alpha, beta, vectors = run(jnp.asarray(start, dtype))
        nodes, weights = kernels.quadrature(alpha, beta)
    return [np.asarray(x, np.float64) for x in (nodes, weights, vectors)]


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float64", 1e-13)])
def test_of_full_order_the_nodes_are_the_eigenvalues(dtype, error):
    matrix = symmetric(SPECTRUM)
    nodes, weights, vectors = reduced(matrix, np.ones(6), 6, dtype)
    np.testing.assert_allclose(nodes, SPECTRUM, rtol=error)
    np.testing.assert_allclose(weights.sum(), 1, rtol=error)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(6), atol=error)


def test_three_products_give_the_published_quadrature():
    nodes, weights, _ = reduced(np.diag(SPECTRUM), np.ones(6), 3, "float64")
    np.testing.assert_allclose(nodes, [1.4222904, 4.15526202, 9.9611505], rtol=1e-7)
    np.testing.assert_allclose(weights, [0.36021476, 0.46825915, 0.17152609], rtol=1e-7)
    np.testing.assert_allclose(weights @ nodes, 25 / 6, rtol=1e-12)
    np.testing.assert_allclose(weights @ nodes**5, 104425 / 6, rtol=1e-12)
    # Of degree six it is not exact any more.
    assert abs(weights @ nodes**6 - np.mean(SPECTRUM**6)) > 1


def test_found_eigenvalues_do_not_come_back_as_copies():
    spectrum = np.concatenate([np.linspace(0, 1, 46), [5.0, 20.0, 50.0, 100.0]])
    nodes, _, vectors = reduced(symmetric(spectrum), np.ones(50), 30)
    assert (nodes > 1.1).sum() == 4
    np.testing.assert_allclose(nodes[-4:], spectrum[-4:], atol=1e-6 * 100)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(30), atol=1e-5)


def test_an_exhausted_space_ends_early_without_weight():
    start = np.array([1.0, 0, 1.0, 0, 0, 0])  # sees the eigenvalues 1 and 3 alone
    nodes, weights, vectors = reduced(np.diag(SPECTRUM), start, 5)
    assert np.isfinite(nodes).all()
    np.testing.assert_allclose(nodes[weights > 1e-6], [1, 3], rtol=1e-5)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[2:], 0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_maps_of_any_size_are_reduced(size):
    nodes, weights, _ = reduced(np.diag(SPECTRUM * size), np.ones(6), 3)
    want, _, _ = reduced(np.diag(SPECTRUM), np.ones(6), 3)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    if size:
        np.testing.assert_allclose(nodes / size, want, rtol=1e-4)
    else:
        np.testing.assert_allclose(nodes, 0)


def test_vectors_may_have_any_shape():
    diagonal = jnp.asarray(SPECTRUM.reshape(2, 3), jnp.float32)
    alpha, beta, vectors = kernels.lanczos(
        lambda v: diagonal * v, jnp.ones((2, 3), jnp.bfloat16), 6
    )
    assert vectors.shape == (6, 2, 3) and alpha.dtype == jnp.float32
    nodes, _ = kernels.quadrature(alpha, beta)
    np.testing.assert_allclose(nodes, SPECTRUM, rtol=1e-5)
    value, vector = kernels.power_iteration(
        lambda v: diagonal * v, jnp.ones((2, 3)), steps=30
    )
    np.testing.assert_allclose(value, 10, rtol=1e-5)
    np.testing.assert_allclose(vector, np.eye(6)[5].reshape(2, 3), atol=1e-5)


def test_one_product_gives_the_rayleigh_quotient():
    alpha, beta, _ = kernels.lanczos(lambda v: v * jnp.arange(4.0), jnp.ones(4), 1)
    np.testing.assert_allclose(alpha, [1.5])
    assert beta.shape == (0,)


@pytest.mark.parametrize("spectrum", [(1.0, 2.0, -5.0), (0.5, 3.0, 1.0)], ids=str)
def test_power_iteration_finds_the_largest_in_size(spectrum):
    matrix = jnp.asarray(symmetric(np.array(spectrum)), jnp.float32)
    value, vector = kernels.power_iteration(
        lambda v: matrix @ v, jnp.array([1.0, 0.5, -0.2]), steps=20
    )
    np.testing.assert_allclose(value, max(spectrum, key=abs), rtol=1e-5)
    np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-5)


def test_its_error_falls_with_the_square_of_the_ratio():
    diagonal = jnp.array([1.0, 2.0])
    errors = [
        2 - kernels.power_iteration(lambda v: diagonal * v, jnp.ones(2), steps=k)[0]
        for k in (2, 4)
    ]
    np.testing.assert_allclose(errors[0] / errors[1], 16, rtol=0.1)


def test_a_map_to_zero_has_the_value_zero():
    value, vector = kernels.power_iteration(lambda v: 0 * v, jnp.ones(3))
    assert value == 0
    np.testing.assert_allclose(vector, 3**-0.5, rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"order must be from 1 to the 3 .*got 4"):
        kernels.lanczos(lambda v: v, jnp.ones(3), 4)
    with pytest.raises(ValueError, match=r"order must be from 1 to the 3 .*got 0"):
        kernels.lanczos(lambda v: v, jnp.ones(3), 0)
    with pytest.raises(TypeError, match="lanczos: needs a floating dtype, got int32"):
        kernels.lanczos(lambda v: v, jnp.ones(3, jnp.int32), 1)
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        kernels.power_iteration(lambda v: v, jnp.ones(3), steps=0)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(3,\)"):
        kernels.quadrature(jnp.ones(3), jnp.ones(3))
