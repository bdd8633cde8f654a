"""Optimizers that Optax has too: equations, bad input, precision."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.conformance import references
from tests.optimizers import fixture, trajectories

# Everything that the conformance suite leaves at its default.
SETTINGS = {
    "yogi": ({"b1": 0.8, "b2": 0.9, "eps": 0.1, "initial_square": 0.02}, 3),
    "ademamix": ({"b3": 0.99, "alpha_warmup_steps": 4, "b3_warmup_steps": 3}, 5),
    "adopt": ({"b2": 0.9, "eps": 0.15, "clip": False}, 4),
    "radam": ({"b2": 0.99, "sgd_start": False}, 8),
    "rmsprop": ({"centered": True, "momentum": 0.8, "nesterov": True}, 3),
    "amsgrad": ({"b2": 0.8, "eps": 0.1, "bias_correction": False}, 3),
    "adamax": ({"b1": 0.8, "b2": 0.7, "eps": 0.1}, 3),
    "simplified_ademamix": ({"b1": 0.8, "alpha": 3.0, "eps": 0.1}, 3),
    "signum": ({"b1": 0.6}, 3),
    "adagrad": ({"eps": 0.1, "initial_square": 0.02}, 3),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_its_equations_with_every_argument(name):
    settings, steps = SETTINGS[name]
    settings = {"weight_decay": 0.1, **settings}
    build = getattr(optimizers, name)
    got = fixture.run(build, steps=steps, **settings)
    defaults = {k: p.default for k, p in inspect.signature(build).parameters.items()}
    given = {**defaults, **settings, "learning_rate": fixture.RATE}
    grads = [np.array(fixture.GRADIENTS[t % 3]) for t in range(steps)]
    want = references.REFERENCES[name](given)(np.array(fixture.START), grads)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("yogi", {"b2": 1.0}, r"scale_by_yogi: b2 must be .* below 1, got 1\.0"),
        ("yogi", {"initial_square": -1.0}, r"initial_square must be 0 or more"),
        ("ademamix", {"b3": 1.5}, r"ademamix: b3 must be .* below 1, got 1\.5"),
        ("ademamix", {"alpha_warmup_steps": 0}, "alpha_warmup_steps must be 1 or more"),
        ("ademamix", {"b3_warmup_steps": -1}, "b3_warmup_steps .* got -1; None is"),
        ("adopt", {"eps": -1e-6}, "adopt: eps must be 0 or more, got -1e-06"),
        ("radam", {"b1": -0.1}, r"scale_by_radam: b1 must be .* got -0\.1"),
        ("rmsprop", {"b2": 1.0}, r"scale_by_rmsprop: b2 must be .* got 1\.0"),
        ("rmsprop", {"momentum": 1.0}, r"rmsprop: momentum must be .* got 1\.0"),
        ("amsgrad", {"b2": 1.0}, r"amsgrad: b2 must be .* got 1\.0"),
        ("adamax", {"eps": -1.0}, r"adamax: eps must be 0 or more, got -1\.0"),
        ("simplified_ademamix", {"alpha": -1.0}, "alpha must be 0 or more, got -1"),
        ("signum", {"b1": 1.0}, r"signum: b1 must be .* got 1\.0"),
        ("adagrad", {"initial_square": -1.0}, "initial_square must be 0 or more"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(name, settings, said):
    with pytest.raises(ValueError, match=said):
        getattr(optimizers, name)(0.1, **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_missing_parameters_are_named(name):
    tx = getattr(optimizers, name)(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., para"):
        jax.eval_shape(tx.update, jnp.ones(2), tx.init(jnp.ones(2)))


def test_in_bfloat16_slow_averages_move():
    ones = jnp.ones(4, jnp.bfloat16)
    for name, field in (("ademamix", "m2"), ("adopt", "nu"), ("radam", "nu")):
        tx = getattr(optimizers, name)(1e-3)
        _, state = trajectories.parameters(tx, ones, [ones] * 2)
        assert optax.tree.get(state, field).dtype == jnp.float32
