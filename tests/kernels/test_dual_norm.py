"""Polar factors times the nuclear norm of their matrices."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import kernels, optimizers


def exact(x):
    u, _, v = jnp.linalg.svd(x, full_matrices=False)
    return u @ v


def stack(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_factor_is_the_nuclear_norm_of_each_matrix():
    x = stack(2, 3, 4, 6) * jnp.array([1.0, 100.0]).reshape(2, 1, 1, 1)
    got = kernels.by_dual_norm(exact)(x)
    nuclear = np.linalg.svd(x, compute_uv=False).sum(axis=-1)[..., None, None]
    np.testing.assert_allclose(got, nuclear * exact(x), rtol=1e-4, atol=1e-3)


def test_no_direction_is_steeper_in_the_spectral_norm():
    x = np.asarray(stack(4, 6))
    best = np.asarray(kernels.by_dual_norm(exact)(jnp.asarray(x)))

    def model(d):
        return np.sum(x * d) + np.linalg.norm(d, 2) ** 2 / 2

    assert model(-best) == pytest.approx(-(np.linalg.norm(x, "nuc") ** 2) / 2, rel=1e-5)
    for seed in range(20):
        assert model(-best + 0.1 * np.asarray(stack(4, 6, seed=seed))) > model(-best)


def test_it_is_as_large_as_its_argument():
    kernel = kernels.by_dual_norm(kernels.newton_schulz)
    x = stack(4, 6)
    for factor in (2.0**90, 2.0**-90):
        np.testing.assert_allclose(kernel(factor * x) / factor, kernel(x), rtol=1e-6)
    np.testing.assert_array_equal(kernel(0 * x), 0)


def test_half_precision_comes_back_as_it_went_in():
    x = stack(4, 6)
    kernel = kernels.by_dual_norm(kernels.newton_schulz)
    got = kernel(x.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), kernel(x), rtol=0.1, atol=0.1)


def test_muon_with_it_is_optax_s_adaptive_muon():
    params = {"kernel": jnp.zeros((4, 6))}
    polar = functools.partial(kernels.newton_schulz, eps=1e-8)
    ours = optimizers.muon(
        0.1, momentum="bias_corrected", orthogonalize=kernels.by_dual_norm(polar)
    )
    theirs = optax.contrib.muon(0.1, adaptive=True)
    states = [tx.init(params) for tx in (ours, theirs)]
    for seed in range(3):
        gradient = {"kernel": stack(4, 6, seed=seed)}
        (got, states[0]), (want, states[1]) = (
            tx.update(gradient, state, params)
            for tx, state in zip((ours, theirs), states, strict=True)
        )
        np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=2e-3, atol=2e-4)
