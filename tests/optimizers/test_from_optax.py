"""Optimizers that Optax has too: their equations, and where Optax leaves them."""

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


def two(tx, grads):
    """Returns the update of the last gradient, in float32."""
    state = tx.init(jnp.asarray(grads[0]))
    for g in grads:
        updates, state = tx.update(jnp.asarray(g), state)
    return np.asarray(updates)


def jitted(tx):
    return optax.GradientTransformation(tx.init, jax.jit(tx.update))


def test_yogi_rests_where_optax_moves_without_a_gradient():
    zero = [np.zeros(1, np.float32)]
    assert two(optimizers.scale_by_yogi(), zero) == 0
    assert two(optax.scale_by_yogi(), zero) > 2e-4


def test_yogi_survives_two_infinite_squares():
    huge = [np.full(1, 1e30, np.float32)] * 3 + [np.ones(1, np.float32)]
    assert np.isfinite(two(optimizers.scale_by_yogi(), huge)).all()


def test_ademamix_without_its_slow_mean_is_adamw():
    got = fixture.run(optimizers.ademamix, alpha=0.0, weight_decay=0.1)
    want = fixture.run(optimizers.adamw, weight_decay=0.1)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_ademamix_warms_up_from_step_one_to_its_last():
    # The slow mean alone: the first gradient with a quarter of alpha, the fourth whole.
    settings = {"b1": 0.0, "alpha_warmup_steps": 4, "b3_warmup_steps": 4, "b3": 0.75}
    with_slow = fixture.run(optimizers.ademamix, steps=4, alpha=8.0, **settings)
    without = fixture.run(optimizers.ademamix, steps=4, alpha=0.0, **settings)
    first = (with_slow[0] - without[0]) / -fixture.RATE
    # The half-life at step 1 is a quarter of b3's: b = 0.75^4.
    np.testing.assert_allclose(
        np.abs(first), 8 / 4 * (1 - 0.75**4) * np.ones((2, 2)), rtol=1e-6
    )


def test_adopts_first_gradient_only_starts_the_divisor():
    first, second = fixture.run(optimizers.adopt, steps=2, weight_decay=0.5)
    np.testing.assert_allclose(first, 0.95 * np.array(fixture.START), rtol=1e-15)
    # Then 0.1 of the gradient over the one before, at most 1: -1, 1/2, 2/3 and 1.
    want = 0.95 * first - 0.1 * 0.1 * np.array([[-1, -0.5], [2 / 3, 1]])
    np.testing.assert_allclose(second, want, rtol=1e-14)


@pytest.mark.parametrize("b2", [0.99, 0.999, 0.9999])
def test_radam_is_rectified_from_its_sixth_step_in_float32_too(b2):
    tx = optimizers.scale_by_radam(b2=b2)
    g = jnp.full(1, 30.0)
    state, factors = tx.init(g), []
    for _ in range(7):
        updates, state = tx.update(g, state)
        factors.append(np.asarray(updates).item())
    np.testing.assert_allclose(factors[:5], 30, rtol=1e-6)
    t, most = np.arange(6, 8), 2 / (1 - b2) - 1
    r = most - 2 * t * b2**t / (1 - b2**t)
    want = np.sqrt((r - 4) * (r - 2) * most / ((most - 4) * (most - 2) * r))
    np.testing.assert_allclose(factors[5:], want, rtol=3e-4)


def test_optaxs_radam_divides_from_its_second_step_in_float32():
    ours, optaxs = (
        two(make(b2=0.9999), [np.full(1, 30, np.float32)] * 2)
        for make in (optimizers.scale_by_radam, optax.scale_by_radam)
    )
    assert (ours > 29.9) & (optaxs < 0.1)


def test_centered_rmsprop_stays_a_number_where_optax_loses_it():
    equal = [np.linspace(0.5, 1.5, 64, dtype=np.float32)] * 150
    centered = optimizers.scale_by_rmsprop(centered=True)
    with np.errstate(all="ignore"):
        ours, optaxs = (
            two(jitted(tx), equal) for tx in (centered, optax.scale_by_stddev())
        )
    assert np.isfinite(ours).all()
    assert np.isnan(optaxs).any()


def test_rmsprops_momentum_follows_the_rate_of_the_moment():
    # Without gradients after the first, what is left of it moves at rates 1 and 0.
    tx = optimizers.rmsprop(lambda count: jnp.where(count > 1, 0.0, 1.0), momentum=0.5)
    grads = [jnp.ones(1), jnp.zeros(1), jnp.zeros(1)]
    points, _ = trajectories.parameters(tx, jnp.zeros(1), grads)
    first = -np.sqrt(10)
    np.testing.assert_allclose(
        np.ravel(points), [first, 1.5 * first, 1.5 * first], rtol=1e-6
    )


def test_adagrads_steps_shrink_as_one_over_the_root_of_their_number():
    tx = optimizers.adagrad(1.0, eps=0.0, initial_square=0.0)
    points, _ = trajectories.parameters(tx, jnp.zeros(1), [jnp.full(1, 7.0)] * 4)
    np.testing.assert_allclose(
        np.ravel(points), -np.cumsum(np.arange(1, 5) ** -0.5), rtol=1e-6
    )


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
