"""SCALE: the published numbers, who has momentum, and hostile columns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from optlab import optimizers, schedules, trees
from tests.optimizers import trajectories

LANGUAGE_MODEL = {
    "embed": {"embedding": (9, 4)},
    "layers": {"norm": {"scale": (2, 4)}, "up": {"kernel": (2, 4, 6), "bias": (2, 6)}},
    "attention": {"query": {"kernel": (4, 2, 2)}, "out": {"kernel": (2, 2, 4)}},
    "lm_head": {"kernel": (4, 9), "bias": (9,)},
}


def normal(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def update(tx, gradient):
    return tx.update(gradient, tx.init(gradient), gradient)


def test_columns_have_root_mean_square_one_or_length_one():
    gradient = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])}
    rms, _ = update(optimizers.scale_by_scale(), gradient)
    want = np.array([[3.0, 0.0], [4.0, 5.0]]) / [np.sqrt(12.5), np.sqrt(12.5)]
    np.testing.assert_allclose(rms["kernel"], want, rtol=1e-6)
    length, _ = update(optimizers.scale_by_scale(norm="l2"), gradient)
    np.testing.assert_allclose(length["kernel"], want / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (3, 1, 2, 5), (2, 4, 3)], ids=str)
def test_the_norm_of_an_update_depends_on_the_shape_alone(shape):
    gradient = {"conv" if len(shape) == 4 else "up": {"kernel": shape}}
    updates, _ = update(optimizers.scale_by_scale(), normal(gradient))
    norm = optax.tree.norm(updates)
    np.testing.assert_allclose(norm, np.sqrt(np.prod(shape)), rtol=1e-6)


def test_an_attention_is_normalised_over_what_each_unit_takes_in():
    gradient = normal(LANGUAGE_MODEL)["attention"]
    updates, _ = update(optimizers.scale_by_scale(), gradient)
    query, out = (updates[name]["kernel"] for name in ("query", "out"))
    np.testing.assert_allclose(jnp.mean(query**2, axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(out**2, axis=(0, 1)), 1, rtol=1e-5)


def test_only_the_head_has_state_and_the_rest_has_its_own():
    params = normal(LANGUAGE_MODEL)
    tx = optimizers.scale(0.1, rest=optax.sgd(0.5))
    updates, state = update(tx, params)
    assert [x.shape for x in jax.tree.leaves(state) if x.ndim] == [(4, 9)]
    for layer, name in (("layers", "norm"), ("lm_head", "bias")):
        jax.tree.map(
            lambda u, g: np.testing.assert_allclose(u, -0.5 * g),
            *(updates[layer][name], params[layer][name]),
        )


def test_the_head_follows_its_mean_gradient_without_bias_correction():
    first, second = (normal({"head": {"kernel": (4, 9)}}, seed) for seed in (0, 1))
    tx = optimizers.scale_by_scale(b1=0.8)
    _, state = update(tx, first)
    got, state = tx.update(second, state)
    mean = jax.tree.map(lambda a, b: 0.2 * (0.8 * a + b), first, second)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), state.momentum, mean
    )
    columns = optimizers.scale_by_scale(head="nothing")
    want, _ = update(columns, mean)
    np.testing.assert_allclose(got["head"]["kernel"], want["head"]["kernel"], rtol=1e-5)


def test_a_tied_embedding_has_momentum_when_it_is_named():
    params = normal({"embed": {"embedding": (9, 4)}})
    state = optimizers.scale_by_scale(head="embed").init(params)
    assert state.momentum["embed"]["embedding"].shape == (9, 4)


def test_flax_embeddings_and_heads_are_columns_and_norms_are_not():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.LayerNorm()(nn.Embed(9, 4)(x))
            return nn.Dense(9, name="head")(nn.Dense(4)(h))

    shapes = jax.eval_shape(Model().init, jax.random.key(0), jnp.zeros((1,), int))
    labels = trees.labels(optimizers.column_views(shapes["params"]))
    assert labels["Embed_0"] == {"embedding": "matrix"}
    assert labels["head"] == labels["Dense_0"] == {"kernel": "matrix", "bias": "rest"}
    assert labels["LayerNorm_0"] == {"bias": "rest", "scale": "rest"}


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_columns_of_any_size_stay_finite(size):
    gradient = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]) * size}
    updates, _ = update(optimizers.scale_by_scale(), gradient)
    if size > 1:
        np.testing.assert_allclose(optax.tree.norm(updates), 2, rtol=1e-6)
    else:  # below eps a column shrinks: noise is not blown up
        np.testing.assert_allclose(updates["kernel"], gradient["kernel"] / 1e-8)


def test_a_column_of_noise_above_eps_is_blown_up():
    # A word of the vocabulary that no example has gets zero, not noise: exact zeros.
    gradient = {"kernel": jnp.array([[1e-7, 0.0], [0.0, 0.0]])}
    updates, _ = update(optimizers.scale_by_scale(), gradient)
    np.testing.assert_allclose(updates["kernel"][:, 0], [np.sqrt(2), 0], rtol=1e-6)
    np.testing.assert_array_equal(updates["kernel"][:, 1], 0)


def test_decay_is_decoupled_and_masked():
    params = normal({"a": {"kernel": (3, 2)}, "b": {"kernel": (3, 2)}})
    mask = {"a": {"kernel": True}, "b": {"kernel": False}}
    tx = optimizers.scale(
        schedules.linear(0.5, total_steps=2), weight_decay=0.5, mask=mask
    )
    nothing = jax.tree.map(jnp.zeros_like, params)
    points, _ = trajectories.parameters(tx, params, [nothing] * 2)
    a, b = params["a"]["kernel"], params["b"]["kernel"]
    np.testing.assert_allclose(points[1]["a"]["kernel"], a * 21 / 32, rtol=1e-6)
    np.testing.assert_array_equal(points[1]["b"]["kernel"], b)


def test_bad_arguments_are_named_when_the_chain_is_built():
    with pytest.raises(ValueError, match=r"norm must be one of .*'l2'.*got 'max'"):
        optimizers.scale(0.1, norm="max", rest=optimizers.adamw(0.1))
    with pytest.raises(ValueError, match=r"leaf 'up/bias' has shape \(6,\).*rest="):
        optimizers.scale(0.1).init({"up": {"bias": jnp.ones(6)}})
