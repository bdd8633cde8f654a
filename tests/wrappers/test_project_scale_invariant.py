"""Projection around any transformation: AdamP and SGDP again, and any other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import links, optimizers, wrappers
from tests.optimizers import trajectories

W = jnp.array([[3.0, 4.0], [1.0, 0.0]])  # (out, in)
G = jnp.array([[4.0, -3.0], [0.0, 2.0]])
# At this threshold most random gradients are taken for those of invariant weights.
WIDE = {"delta": 4.0, "channel_axis": -1}


def chained(inner, **more):
    wrapped = wrappers.project_scale_invariant(inner, **more)
    return optax.chain(wrapped, links.scale_by_learning_rate(0.1))


@pytest.mark.parametrize(
    ("inner", "alias", "ratio"),
    [
        (optax.scale_by_adam(), optimizers.adamp, 1.0),
        (optax.trace(0.9), optimizers.sgdp, 10.0),
        (optax.trace(0.9, nesterov=True), optimizers.sgdp, 10.0),
    ],
)
def test_around_adam_it_is_adamp_and_around_momentum_sgdp(inner, alias, ratio):
    grads, w = trajectories.gradients((4, 6)), jnp.cos(jnp.arange(24.0)).reshape(4, 6)
    nesterov = ratio > 1 and bool(inner.update(W, inner.init(W))[0][0, 0] > 3)
    wanted, _ = trajectories.parameters(
        alias(0.1, weight_decay=0.1, nesterov=nesterov, **WIDE), w, grads
    )
    got, _ = trajectories.parameters(
        chained(inner, weight_decay=0.1 * ratio, **WIDE), w, grads
    )
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_layout_and_its_transpose_do_not_agree_where_channels_matter():
    def step(w, g, channel_axis):
        tx = chained(optax.scale_by_adam(), channel_axis=channel_axis)
        return trajectories.parameters(tx, w, [g])[0][0]

    rows = step(W, G, 0)
    np.testing.assert_allclose(step(W.T, G.T, -1).T, rows, rtol=1e-6)
    assert np.max(np.abs(step(W, G, -1) - rows)) > 1e-4


def test_a_convolution_has_its_channels_last():
    """The channels are at right angles to their gradients; those of inputs are not."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 3)), jnp.float32)
    g = jnp.flip(w, (0, 1, 2)) * jnp.sign(jnp.arange(18) - 8.5).reshape(3, 3, 2, 1)
    tx = wrappers.project_scale_invariant(optax.identity(), channel_axis=-1)
    radial = []
    for channel_axis in (-1, None, 2):
        tx = wrappers.project_scale_invariant(
            optax.stateless(lambda updates, params: params), channel_axis=channel_axis
        )
        tree = {"conv": {"kernel": w}}
        u, _ = tx.update({"conv": {"kernel": g}}, tx.init(tree), tree)
        radial.append(jnp.sum(u["conv"]["kernel"] * w, (0, 1, 2)))
    np.testing.assert_allclose(radial[0], 0.0, atol=1e-5)
    np.testing.assert_allclose(radial[1], 0.0, atol=1e-5)
    # Axis 2 names the inputs: their two halves are not, but the layer as a whole is.
    assert np.max(np.abs(jnp.sum(g * w, (0, 1, 3)))) > 0.5
    assert jnp.sum(g * w) ** 2 < 1e-6


def test_around_a_whole_optimizer_the_length_grows_by_the_second_order_only():
    """Plain momentum pushes along the weights, a projected step turns them."""
    w, state = W, None
    tx = wrappers.project_scale_invariant(
        optimizers.adamw(0.01, weight_decay=0.0), channel_axis=0
    )
    state = tx.init(w)
    for k in range(20):
        g = jnp.asarray(trajectories.gradients((2, 2), 20)[k])
        g = g - w * jnp.sum(g * w, 1, keepdims=True) / jnp.sum(w * w, 1, keepdims=True)
        updates, state = tx.update(g, state, w)
        np.testing.assert_allclose(jnp.sum(updates * w, 1), 0.0, atol=1e-6)
        w = optax.apply_updates(w, updates)


def test_only_what_the_mask_says_decays():
    params = {"up": {"kernel": W, "bias": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = wrappers.project_scale_invariant(
        optax.identity(),
        weight_decay=0.5,
        mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
    )
    updates, _ = tx.update(zeros, tx.init(params), params)
    # A gradient of zero is at right angles to everything: a tenth of the decay.
    np.testing.assert_allclose(updates["up"]["kernel"], 0.05 * W, rtol=1e-6)
    np.testing.assert_array_equal(updates["up"]["bias"], 0.0)


def test_the_inner_transformation_gets_extra_arguments_in_float32():
    def update(updates, state, params=None, *, value, **extra_args):
        del extra_args
        return jax.tree.map(lambda u, p: value * u + 0 * p, updates, params), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = wrappers.project_scale_invariant(inner, delta=0.0)
    half = jnp.ones((2, 2), jnp.bfloat16)
    updates, _ = tx.update(half, tx.init(half), half, value=2.0)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates, 2.0)


def test_bad_input_is_named():
    wrap = wrappers.project_scale_invariant
    params = {"up": {"kernel": jnp.ones((4, 6))}}
    said = r"project_scale_invariant: leaf 'up/kernel' has shape \(4, 6\); channel_axis"
    for axis in (2, -3, (0, 1), (1, -1)):
        tx = wrap(optax.identity(), channel_axis=axis)
        with pytest.raises(ValueError, match=said):
            tx.update(params, tx.init(params), params)
    for name in ("eps", "delta", "wd_ratio"):
        with pytest.raises(ValueError, match=rf"invariant: {name} must be 0 or more"):
            wrap(optax.identity(), **{name: -1.0})
    tx = wrap(optax.identity())
    with pytest.raises(
        TypeError, match=r"needs the parameters: update\(\.\.\., params"
    ):
        tx.update(params, tx.init(params))
