"""Damped inverses against float64, and the iteration of Schulz by its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

METHODS = kernels.INVERSE_METHODS


def spd(condition, size=6, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return basis * np.geomspace(1, 1 / condition, size) @ basis.T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_equals_the_float64_inverse_within_the_condition(method, condition):
    x = spd(condition)
    want = np.linalg.inv(x + 1e-6 * np.eye(6))
    got = kernels.damped_inverse(jnp.asarray(x, jnp.float32), 1e-6, method)
    # Some float32 roundings times the condition.
    np.testing.assert_allclose(got, want, atol=16 * 1.2e-7 * condition * want.max())


def test_in_float64_all_methods_agree():
    x = spd(1e3)
    with jax.enable_x64(True):
        got = [kernels.damped_inverse(jnp.asarray(x), 0.01, m) for m in METHODS]
    for inverse in got:
        np.testing.assert_allclose(inverse, np.linalg.inv(x + 0.01 * np.eye(6)))


@pytest.mark.parametrize("method", METHODS)
def test_stacks_have_a_damping_each(method):
    stack = jnp.asarray([spd(10, seed=seed) for seed in range(3)], jnp.float32)
    damping = jnp.array([0.1, 1.0, 10.0])
    got = kernels.damped_inverse(stack, damping, method)
    for index in range(3):
        alone = kernels.damped_inverse(stack[index], damping[index], method)
        np.testing.assert_allclose(got[index], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_rank_one_and_zero_are_finite_at_every_size(method, size):
    one = size * jnp.ones((4, 4))
    for x in (one, 0 * one):
        for damping in (1e-3, 1e-3 * size):
            assert np.isfinite(kernels.damped_inverse(x, damping, method)).all()


def test_the_iteration_has_the_published_numbers():
    x = jnp.diag(jnp.array([1.0, 0.25]))
    want = [0.484375, 0.91009521, 1.6131221, 2.57570348, 3.49284485, 3.93569841]
    for steps, value in enumerate(want, start=1):
        got = kernels.newton_schulz_inverse(x, steps)
        np.testing.assert_allclose(got, np.diag([1.0, value]), rtol=1e-6)


def test_a_zero_matrix_gives_zero_and_dtypes_are_kept():
    zero = jnp.zeros((3, 3), jnp.bfloat16)
    got = kernels.newton_schulz_inverse(zero)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, 0)
    assert kernels.damped_inverse(zero, 1.0).dtype == jnp.bfloat16


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"one of .*'eigh'.*got 'lu'"):
        kernels.damped_inverse(jnp.eye(2), 1.0, "lu")
