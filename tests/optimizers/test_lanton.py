"""LANTON: the noise of a layer, its ratio, and Muon where there is no noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories


def exact(x):
    u, _, v = jnp.linalg.svd(x, full_matrices=False)
    return u @ v


def shifted(gradient, **distances):
    """A second gradient at these nuclear norms from the first, layer by layer."""
    return {
        name: {"kernel": gradient[name]["kernel"] + distance / 2 * jnp.eye(2)}
        for name, distance in distances.items()
    }


core = functools.partial(
    optimizers.scale_by_lanton, second_gradient="pair", measure=exact
)
LAYERS = {name: {"kernel": jnp.diag(jnp.array([3.0, 1.0]))} for name in "abc"}


def step(tx, gradient, pair):
    return tx.update(gradient, tx.init(gradient), noise_pair=pair)


def ratios(updates):
    muon = optimizers.scale_by_muon(nesterov=False, scale="moonlight")
    want, _ = muon.update(LAYERS, muon.init(LAYERS))
    return {
        name: float((updates[name]["kernel"] / want[name]["kernel"])[0, 0])
        for name in updates
    }


@pytest.mark.parametrize("second_gradient", ["previous", "pair"])
def test_without_noise_it_is_muon_bit_for_bit(second_gradient):
    gradient = {
        "wide": jnp.asarray(trajectories.gradients((4, 6))[0]),
        "stack": jnp.asarray(trajectories.gradients((2, 6, 4))[0]),
    }
    tx = optimizers.scale_by_lanton(second_gradient=second_gradient)
    muon = optimizers.scale_by_muon(nesterov=False, scale="moonlight")
    state, base = tx.init(gradient), muon.init(gradient)
    for _ in range(3):
        got, state = tx.update(gradient, state, noise_pair=gradient)
        want, base = muon.update(gradient, base)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_noise_is_the_average_square_of_the_nuclear_norm():
    gradient = {"kernel": jnp.zeros((2, 2))}
    pair = {"kernel": jnp.diag(jnp.array([3.0, 4.0]))}
    tx = core(b2=0.75)
    _, state = step(tx, gradient, pair)
    np.testing.assert_allclose(state.noise["kernel"], [[0.25 * 7**2]], rtol=1e-5)
    _, state = tx.update(gradient, state, noise_pair=pair)
    np.testing.assert_allclose(
        state.noise["kernel"], [[(1 - 0.75**2) * 7**2]], rtol=1e-5
    )


def test_by_default_the_nuclear_norm_is_right_to_three_per_cent():
    x = trajectories.gradients((4, 6))[0]
    tx = optimizers.scale_by_lanton(b2=0.0, second_gradient="pair")
    zero = {"kernel": jnp.zeros((4, 6))}
    _, state = step(tx, zero, {"kernel": jnp.asarray(x)})
    got = float(state.noise["kernel"][0, 0]) ** 0.5
    assert got == pytest.approx(np.linalg.norm(x, "nuc"), rel=0.032)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_the_quietest_layer_has_the_ratio_one_and_the_others_less(alpha):
    # H = 0 and H = 3 alpha^2; with H = 15 alpha^2 in another step.
    for factor, want in ((3, 0.707107), (15, 0.5)):
        pair = shifted(LAYERS, a=0.0, b=alpha * factor**0.5, c=0.0)
        updates, _ = step(core(b2=0.0, alpha=alpha), LAYERS, pair)
        got = ratios(updates)
        assert got["a"] == got["c"] == 1.0
        assert got["b"] == pytest.approx(want, rel=1e-5)


def test_a_layer_is_compared_with_its_own_group():
    pair = shifted(LAYERS, a=0.0, b=3.0, c=3.0)
    labels = {"a": {"kernel": 0}, "b": {"kernel": 1}, "c": {"kernel": 1}}
    for groups in (labels, lambda tree: labels):
        updates, _ = step(core(b2=0.0, groups=groups), LAYERS, pair)
        np.testing.assert_allclose(list(ratios(updates).values()), 1, rtol=1e-6)
    updates, _ = step(core(b2=0.0), LAYERS, pair)
    assert ratios(updates)["c"] < 0.6


def test_every_layer_of_a_stack_has_its_own_ratio():
    gradient = {"kernel": jnp.stack([layer["kernel"] for layer in LAYERS.values()])}
    pair = shifted(LAYERS, a=0.0, b=3.0, c=1.0)
    stacked = {"kernel": jnp.stack([layer["kernel"] for layer in pair.values()])}
    apart, _ = step(core(b2=0.0), LAYERS, pair)
    got, state = step(core(b2=0.0), gradient, stacked)
    assert state.noise["kernel"].shape == (3, 1, 1)
    for i, name in enumerate(LAYERS):
        np.testing.assert_allclose(
            got["kernel"][i], apart[name]["kernel"], rtol=1e-5, atol=1e-7
        )


def test_the_previous_gradient_is_the_second_one():
    tx = optimizers.scale_by_lanton(b2=0.0, measure=exact)
    first = {"kernel": jnp.zeros((2, 2)).at[0, 0].set(1.0)}
    _, state = tx.update(first, tx.init(first))
    np.testing.assert_array_equal(state.noise["kernel"], 0)  # nothing to compare
    second = {"kernel": first["kernel"] + jnp.diag(jnp.array([2.0, -3.0]))}
    _, state = tx.update(second, state)
    np.testing.assert_allclose(state.noise["kernel"], 25, rtol=1e-5)
    np.testing.assert_array_equal(state.previous["kernel"], second["kernel"])


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_a_bad_second_gradient_slows_no_other_layer(poison):
    pair = shifted(LAYERS, a=1.0, b=1.0, c=1.0)
    bad = {**pair, "c": {"kernel": jnp.full((2, 2), poison)}}
    want, _ = step(core(), LAYERS, {k: v for k, v in pair.items()})
    got, state = step(core(), LAYERS, bad)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((got, state)))
    np.testing.assert_array_equal(got["c"]["kernel"] != 0, want["c"]["kernel"] != 0)


def test_beside_a_rest_the_pair_may_be_the_whole_tree():
    params = {"up": {"kernel": jnp.eye(2), "bias": jnp.ones(2)}}
    tx = optimizers.lanton(0.1, rest=optax.sgd(0.1), second_gradient="pair")
    updates, _ = tx.update(params, tx.init(params), params, noise_pair=params)
    np.testing.assert_allclose(updates["up"]["bias"], -0.1)


def test_what_is_missing_or_unknown_is_named():
    tx = core()
    with pytest.raises(TypeError, match="needs the extra argument noise_pair"):
        tx.update(LAYERS, tx.init(LAYERS))
    with pytest.raises(ValueError, match="noise_pair has no leaf 'b/kernel'"):
        step(tx, LAYERS, {"a": LAYERS["a"], "c": LAYERS["c"]})
    with pytest.raises(ValueError, match=r"one of \('previous', 'pair'\), got 'half'"):
        optimizers.lanton(0.1, second_gradient="half")
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(2,\).*rest="):
        optimizers.lanton(0.1).init({"bias": jnp.ones(2)})
