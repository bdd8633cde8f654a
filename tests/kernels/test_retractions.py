"""Retractions against float64 NumPy, their identities and hostile inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

RNG = np.random.default_rng(0)
P = np.linalg.qr(RNG.normal(size=(7, 3)))[0]
D = RNG.normal(size=(7, 3))

over_manifolds = pytest.mark.parametrize("manifold", kernels.MANIFOLDS)
over_methods = pytest.mark.parametrize("method", kernels.RETRACTIONS)
retract = jax.jit(kernels.retract, static_argnames="method")
orthonormalize = jax.jit(kernels.orthonormalize)


def tangent(p, d, manifold="grassmann"):
    inner = p.T @ d
    return d - p @ (inner if manifold == "grassmann" else (inner + inner.T) / 2)


def positive_qr(x):
    q, r = np.linalg.qr(x)
    return q * np.sign(np.diag(r))


def exponential(p, step):
    """By the exponential of the matrix that rotates the plane of P and the step."""
    turn = step @ p.T - p @ step.T
    values, vectors = np.linalg.eig(turn)
    return (vectors @ np.diag(np.exp(values)) @ np.linalg.inv(vectors) @ p).real


def polar(x):
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


ORACLES = {
    "exp": exponential,
    "qr": lambda p, step: positive_qr(p + step),
    "polar": lambda p, step: polar(p + step),
}


@over_manifolds
def test_the_tangent_part_is_a_tangent_and_the_nearest(manifold):
    with jax.enable_x64(True):
        got = np.asarray(kernels.tangent_part(jnp.asarray(P), jnp.asarray(D), manifold))
        again = kernels.tangent_part(jnp.asarray(P), jnp.asarray(got), manifold)
    np.testing.assert_allclose(got, tangent(P, D, manifold), atol=1e-14)
    np.testing.assert_allclose(again, got, atol=1e-14)
    # At right angles to what was taken out; P^T G is skew, on Grassmann zero.
    assert abs(np.vdot(got, D - got)) < 1e-13
    inner = P.T @ got
    np.testing.assert_allclose(inner, -inner.T, atol=1e-14)
    assert (np.abs(inner).max() < 1e-14) == (manifold == "grassmann")


@over_methods
def test_retractions_equal_numpy_in_float64(method):
    step = 0.7 * tangent(P, D)
    with jax.enable_x64(True):
        got = retract(jnp.asarray(P), jnp.asarray(step), method=method)
    np.testing.assert_allclose(got, ORACLES[method](P, step), atol=1e-13)


@over_methods
def test_the_worked_example(method):
    p = jnp.eye(3)[:, :1]
    step = -kernels.tangent_part(p, jnp.array([[0.3], [0.4], [0.0]]))
    want = {"exp": [0.9210609940, -0.3894183423, 0]}
    want = want.get(method, [0.9284766909, -0.3713906764, 0])
    np.testing.assert_allclose(retract(p, step, method=method)[:, 0], want, atol=1e-7)


@pytest.mark.parametrize(
    ("manifold", "method"),
    [("grassmann", "exp"), ("stiefel", "qr"), ("stiefel", "polar")],
)
def test_retractions_agree_with_the_tangent_to_first_order(manifold, method):
    errors = []
    for size in (1e-2, 1e-3):
        step = size * tangent(P, D, manifold)
        with jax.enable_x64(True):
            got = retract(jnp.asarray(P), jnp.asarray(step), method=method)
        errors.append(np.abs(np.asarray(got) - P - step).max())
    assert errors[0] > 50 * errors[1] > 0


@over_methods
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_columns_are_orthonormal_after_steps_of_any_size(method, size):
    p = jnp.asarray(P, jnp.float32)
    step = kernels.tangent_part(p, jnp.asarray(size * D, jnp.float32))
    got = np.asarray(retract(p, step, method=method), np.float64)
    np.testing.assert_allclose(got.T @ got, np.eye(3), atol=3e-6)
    if size < 1e-20:
        np.testing.assert_allclose(got, P, atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_orthonormal_columns_and_any_multiple_of_them_come_back(size):
    got = orthonormalize(jnp.asarray(size * P, jnp.float32))
    np.testing.assert_allclose(got, P, atol=1e-6)


def test_a_zero_matrix_gives_zero_and_other_ranks_stay_finite():
    zero, flat = jnp.zeros((3, 2)), jnp.ones((3, 2))
    np.testing.assert_array_equal(orthonormalize(zero), 0)
    for method in kernels.RETRACTIONS:
        np.testing.assert_array_equal(retract(zero, zero, method=method), 0)
        assert np.isfinite(retract(flat, flat, method=method)).all()
    assert kernels.retract(zero[:0], zero[:0]).shape == (0, 2)
    assert kernels.orthonormalize(zero[:0]).shape == (0, 2)


@over_methods
def test_a_batch_equals_the_loop_and_keeps_bfloat16(method):
    p = jnp.asarray([[P, -P]], jnp.bfloat16)
    step = jnp.asarray([[0.1 * D, D]], jnp.bfloat16)
    got = retract(p, step, method=method)
    assert (got.shape, got.dtype) == ((1, 2, 7, 3), jnp.bfloat16)
    for i in range(2):
        alone = retract(p[0, i], step[0, i], method=method)
        one, other = (x.astype(jnp.float32) for x in (got[0, i], alone))
        np.testing.assert_allclose(one, other, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: kernels.orthonormalize(jnp.ones(3)), ValueError, r"rows .*got \(3,\)"),
        (lambda: kernels.orthonormalize(jnp.ones((2, 3))), ValueError, r"got \(2, 3\)"),
        (
            lambda: kernels.retract(jnp.ones((3, 2)), jnp.ones((3, 1))),
            ValueError,
            r"matrix has shape \(3, 2\), the step \(3, 1\)",
        ),
        (
            lambda: kernels.retract(jnp.ones((3, 2)), jnp.ones((3, 2)), "cayley"),
            ValueError,
            "method must be one of .*got 'cayley'",
        ),
        (
            lambda: kernels.tangent_part(jnp.ones((3, 2)), jnp.ones((3, 2)), "sphere"),
            ValueError,
            "manifold must be one of .*got 'sphere'",
        ),
        (
            lambda: kernels.orthonormalize(jnp.ones((3, 2), jnp.int32)),
            TypeError,
            "needs a floating dtype, got int32",
        ),
    ],
)
def test_what_does_not_do_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()
