"""Optimizers with one number for each layer: equations, and what a layer is."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import links, optimizers, trees
from tests.conformance import references
from tests.optimizers import trajectories

SHAPES = {"embedding": (3, 2), "kernel": (2, 4, 3), "bias": (2, 3)}
# Everything that the conformance suite leaves at its default.
SETTINGS = {
    "lamb": {"b1": 0.7, "b2": 0.9, "eps": 0.1},
    "adafactor": {"b1": 0.7, "decay_power": 0.5, "eps": 0.01, "max_rms": 0.5},
    "lars": {"momentum": 0.5, "nesterov": True, "trust_coefficient": 0.3},
    "novograd": {"b1": 0.5, "b2": 0.7, "eps": 0.1},
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_its_equations_with_every_argument(name):
    build, settings = getattr(optimizers, name), {"weight_decay": 0.2, **SETTINGS[name]}
    start, grads = draw(0), [draw(seed) for seed in (1, 2, 3)]
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start)
        tx = build(0.1, **settings)
        got, _ = trajectories.parameters(tx, params, grads, compiled=True)
    defaults = {k: p.default for k, p in inspect.signature(build).parameters.items()}
    given = {**defaults, **settings, "learning_rate": 0.1}
    want = references.REFERENCES[name](given)(start, grads)
    for point, wanted in zip(got, want, strict=True):
        for leaf in SHAPES:
            np.testing.assert_allclose(point[leaf], wanted[leaf], rtol=1e-12)


def lengths(tree):
    return np.linalg.norm(np.asarray(tree["kernel"]), axis=(1, 2))


@pytest.mark.parametrize(("name", "share"), [("lamb", 1.0), ("lars", 1e-3)])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_each_layer_of_a_stack_moves_by_one_share_of_its_length(name, share, size):
    params = jax.tree.map(jnp.float32, draw(0))
    params["kernel"] = params["kernel"].at[1].multiply(100.0)
    grads = jax.tree.map(lambda g: jnp.float32(size * g), draw(1))
    tx = getattr(optimizers, name)(0.1, weight_decay=0.0)
    if name == "lamb" and size < 1:
        tx = optimizers.lamb(0.1, weight_decay=0.0, eps=1e-30)
        grads = jax.tree.map(lambda g: g * 1e3, grads)  # squares that float32 holds
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(
        lengths(updates), 0.1 * share * lengths(params), rtol=1e-5
    )


def test_zero_weights_get_a_plain_step():
    w, g = {"kernel": jnp.zeros((2, 1))}, {"kernel": jnp.array([[3.0], [-4.0]])}
    for make, want in ((optimizers.lars, g["kernel"]), (optimizers.lamb, [[1], [-1]])):
        got = trajectories.first_update(make(1.0), g, w, "kernel")
        np.testing.assert_allclose(got, -np.asarray(want), rtol=1e-5)


def test_a_head_that_one_calls_a_vector_has_no_ratio():
    params = {"kernel": jnp.ones((2, 3))}
    none = trees.matrix_views(params, rules=[("kernel", None)])
    assert links.layer_axes(params, none) == [None]
    assert links.layer_axes(params, none, vectors=True) == [(1,)]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("lamb", {"b1": 1.0}, r"lamb: b1 must be .* below 1, got 1\.0"),
        ("adafactor", {"decay_power": -1.0}, "decay_power must be 0 or more, got -1"),
        ("adafactor", {"b1": 1.0}, r"adafactor: b1 must be .* below 1, got 1\.0"),
        ("novograd", {"b1": 1.0}, r"novograd: b1 must be .* below 1, got 1\.0"),
        ("novograd", {"b2": -0.1}, r"scale_by_novograd: b2 must be .* got -0\.1"),
        ("lars", {"momentum": 1.5}, r"lars: momentum must be .* below 1, got 1\.5"),
        ("lars", {"trust_coefficient": -1.0}, "trust_coefficient must be 0 or more"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(name, settings, said):
    with pytest.raises(ValueError, match=said):
        getattr(optimizers, name)(0.1, **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_missing_parameters_are_named(name):
    tx = getattr(optimizers, name)(0.1)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., para"):
        jax.eval_shape(tx.update, jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))
