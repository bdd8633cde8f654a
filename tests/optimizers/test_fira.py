"""Fira: what it adds to GaLore, the limit on its growth, and its two residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories


def gradients(shape=(4, 6), steps=4):
    return [{"kernel": jnp.asarray(g)} for g in trajectories.gradients(shape, steps)]


def updates_of(tx, grads):
    state, out, update = tx.init(grads[0]), [], jax.jit(tx.update)
    for g in grads:
        u, state = update(g, state)
        out.append(u["kernel"])
    return out, state


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=str)
def test_with_every_direction_it_is_galore(shape):
    grads = gradients(shape)
    fira, _ = updates_of(optimizers.scale_by_fira(rank=4), grads)
    galore, _ = updates_of(optimizers.scale_by_galore(rank=4, scale=1.0), grads)
    np.testing.assert_allclose(fira, galore, atol=1e-4)


@pytest.mark.parametrize("side", ["short", "long", "in", "out"])
def test_inside_the_directions_the_step_is_galore_s(side):
    (gradient,) = gradients(steps=1)
    fira = optimizers.scale_by_fira(rank=2, side=side)
    galore = optimizers.scale_by_galore(rank=2, side=side, scale=1.0)
    (got,), state = updates_of(fira, [gradient])
    (want,), _ = updates_of(galore, [gradient])
    left, right = state.bases[0]
    difference, x = got - want, gradient["kernel"]
    if left is not None:
        basis, axis = left[0], 0
    else:
        basis, axis, difference, x = right[0], 1, difference.T, x.T
    np.testing.assert_allclose(basis.T @ difference, 0, atol=1e-4)
    # Of each channel the rest of the gradient, at one factor.
    rest = x - basis @ (basis.T @ x)
    cosine = jnp.sum(rest * difference, 0) / (
        jnp.linalg.norm(rest, axis=0) * jnp.linalg.norm(difference, axis=0)
    )
    np.testing.assert_allclose(cosine, 1, rtol=1e-4, err_msg=str(axis))


def test_the_scaled_residual_of_the_code_keeps_what_the_exact_one_leaves_out():
    (gradient,) = gradients(steps=1)
    inside = []
    for residual in ("scaled", "exact"):
        tx = optimizers.scale_by_fira(rank=2, scale=0.25, residual=residual)
        (got,), state = updates_of(tx, [gradient])
        basis = state.bases[0][0][0]
        inside.append(basis.T @ got)
    galore = optimizers.scale_by_galore(rank=2, scale=0.25)
    (want,), _ = updates_of(galore, [gradient])
    np.testing.assert_allclose(inside[1], basis.T @ want, atol=1e-4)
    assert jnp.abs(inside[0] - inside[1]).max() > 0.1


def test_the_residual_step_grows_by_one_per_cent_at_most():
    small, large = gradients(steps=2)
    small = jax.tree.map(lambda g: 1e-3 * g, small)
    norms = []
    for growth in (1.01, jnp.inf):
        tx = optimizers.scale_by_fira(rank=2, growth=growth)
        _, first = tx.update(small, tx.init(small))
        _, second = tx.update(large, first)
        norms.append((first.norm[0][0], second.norm[0][0]))
    np.testing.assert_allclose(norms[0][1], 1.01 * norms[0][0], rtol=1e-5)
    assert norms[1][1] > 1.01 * norms[1][0]


def test_after_a_zero_gradient_it_moves_again():
    (gradient,) = gradients(steps=1)
    nothing = jax.tree.map(jnp.zeros_like, gradient)
    tx = optimizers.scale_by_fira(rank=2, every=1)
    updates, _ = updates_of(tx, [nothing, gradient])
    np.testing.assert_array_equal(updates[0], 0)
    # The authors' limit would start from 1e-8 and take a thousand steps.
    assert jnp.linalg.norm(updates[1]) > 1


def test_the_state_is_galore_s_and_a_norm():
    tx = optimizers.scale_by_fira(rank=64)
    params = {"kernel": jax.ShapeDtypeStruct((1024, 256), jnp.float32)}
    state = jax.eval_shape(tx.init, params)
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 147456 + 1


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"side": "both"}, r"side must be one of .*got 'both'"),
        ({"residual": "none"}, r"residual must be one of .*got 'none'"),
        ({"rank": 0}, "rank must be an integer of 1 or more, got 0"),
        ({"decay_order": "before"}, r"decay_order must be one of .*got 'before'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_when_the_chain_is_built(argument, words):
    with pytest.raises(ValueError, match=words):
        optimizers.fira(0.1, rest=optax.sgd(0.1), **argument)


def test_too_high_a_rank_names_the_leaf():
    with pytest.raises(ValueError, match=r"leaf 'kernel' has shape \(4, 6\).*rank=5"):
        optimizers.fira(0.1, rank=5).init({"kernel": jnp.ones((4, 6))})
