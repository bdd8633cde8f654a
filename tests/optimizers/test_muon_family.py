"""Muon and its relatives: two conventions for one point, and experts at rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels, optimizers
from optlab.trees import MatrixView
from tests.optimizers import trajectories


def step(tx, gradient):
    return tx.update(gradient, tx.init(gradient), gradient)[0]


@pytest.mark.parametrize(
    ("window", "factors"),
    [((3, 3), (1, 4 / 3)), ((5, 3), ((5 / 3) ** 0.5, (64 / 60) ** 0.5))],
)
@pytest.mark.parametrize("torch", [False, True])
def test_a_convolution_has_the_factor_of_its_window_or_of_its_matrix(
    window, factors, torch
):
    axes = (1, 2, 3) if torch else (0, 1, 2)
    shape = (64, 4, *window) if torch else (*window, 4, 64)
    view = {"conv": MatrixView(axes, (0,) if torch else (3,))}
    gradient = {"conv": jnp.ones(shape)}
    for conv_scale, want in zip(("window", "matrix"), factors, strict=True):
        tx = optimizers.scale_by_muon(
            conv_scale=conv_scale, orthogonalize=jnp.ones_like, views=view
        )
        got = tx.update(gradient, tx.init(gradient))[0]["conv"]
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_with_bias_correction_the_first_gradient_weighs_less():
    identity = functools.partial(kernels.newton_schulz, coefficients=[(1.0, 0.0, 0.0)])
    first, second = (jnp.diag(jnp.array(d)) for d in ([1.0, 0.0], [0.0, 1.0]))
    for form, want in (("bias_corrected", 0.3740), ("average", 0.4628)):
        tx = optimizers.scale_by_muon(
            momentum=form, scale="none", orthogonalize=identity
        )
        _, state = tx.update(first, tx.init(first))
        updates, _ = tx.update(second, state)
        ratio = updates[0, 0] / updates[1, 1]
        np.testing.assert_allclose(ratio, want, atol=1e-4, err_msg=form)


def test_a_fused_projection_moves_less_than_its_parts():
    fused = {"qkv": {"kernel": jnp.asarray(trajectories.gradients((64, 192))[0])}}

    def exact(x):
        u, _, v = jnp.linalg.svd(x, full_matrices=False)
        return u @ v

    whole, parts = (
        step(
            optimizers.muon(
                1.0,
                scale="none",
                nesterov=False,
                orthogonalize=exact,
                views={"qkv": {"kernel": MatrixView((0,), (1,), split=split)}},
            ),
            fused,
        )["qkv"]["kernel"]
        for split in (None, (64, 64, 64))
    )
    sizes = np.linalg.norm(whole), np.linalg.norm(parts)
    np.testing.assert_allclose(sizes, (8.0, 13.856), rtol=1e-4)
    np.testing.assert_allclose(np.vdot(whole, parts) / np.prod(sizes), 0.871, atol=0.01)


MUON_FAMILY = [
    optimizers.muon,
    optimizers.normuon,
    optimizers.turbo_muon,
    optimizers.muon_bp,
    optimizers.lanton,
    functools.partial(optimizers.dion, rank=2, weight_decay=0.0),
    functools.partial(optimizers.dion2, fraction=1.0, weight_decay=0.0),
    functools.partial(optimizers.scion, constrained=False),
]


@pytest.mark.parametrize("make", MUON_FAMILY, ids=lambda make: str(make).split()[1])
def test_an_expert_without_tokens_moves_by_momentum_unless_it_is_held(make):
    first = {"experts": {"kernel": jnp.asarray(trajectories.gradients((2, 4, 6))[0])}}
    second = jax.tree.map(lambda g: g.at[1].set(0.0), first)
    moved = {}
    for least in (None, 0.0):
        tx = make(0.1, min_norm=least)
        _, state = tx.update(first, tx.init(first), first)
        moved[least] = tx.update(second, state, first)[0]["experts"]["kernel"]
    # LANTON slows an expert down whose gradient has just vanished, and it moves still.
    assert np.linalg.norm(moved[None][1]) > 0.1 * np.linalg.norm(moved[None][0]) > 0
    np.testing.assert_array_equal(moved[0.0][1], 0)
    np.testing.assert_array_equal(moved[0.0][0], moved[None][0])


def test_what_is_no_kernel_and_no_convention_is_refused():
    with pytest.raises(TypeError, match=r"function of matrices, .*got 'polar_express'"):
        optimizers.muon(0.1, orthogonalize="polar_express")
    with pytest.raises(ValueError, match=r"conv_scale must be one of .*got 'filter'"):
        optimizers.muon(0.1, conv_scale="filter")
    with pytest.raises(TypeError, match=r"rest=optlab\.optimizers\.adamw\(3e-4\), got"):
        optimizers.muon(0.1, rest=optimizers.adamw)
