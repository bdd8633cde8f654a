"""Cautious masking: the paper's arithmetic, signs, what a share does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import links, optimizers, wrappers
from tests.optimizers import trajectories

U, G = jnp.array([1.0, -1.0, 2.0, 0.5]), jnp.array([1.0, 1.0, 1.0, -1.0])


def given(u):
    """A transformation whose updates are u, whatever comes in."""
    return optax.stateless(lambda updates, params: u)


def masked(u, g, **more):
    tx = wrappers.cautious(given(u), **more)
    return tx.update(g, tx.init(g))[0]


def test_entries_against_the_gradient_go_and_the_others_make_up_for_them():
    np.testing.assert_array_equal(masked(U, G), [2.0, 0.0, 4.0, 0.0])
    # A whole optimizer steps downhill: there the other entries agree.
    np.testing.assert_array_equal(masked(-U, G, downhill=True), [-2.0, 0.0, -4.0, 0.0])
    np.testing.assert_array_equal(masked(U, G, downhill=True), [0.0, -2.0, 0.0, 1.0])


def test_a_share_is_that_of_a_leaf():
    tree = masked({"a": U, "b": U}, {"a": G, "b": jnp.sign(U)})
    np.testing.assert_array_equal(tree["a"], [2.0, 0.0, 4.0, 0.0])
    np.testing.assert_array_equal(tree["b"], U)


def test_the_least_share_bounds_the_factor():
    u, g = jnp.ones(4000), -jnp.ones(4000).at[0].set(-1.0)
    np.testing.assert_allclose(masked(u, g)[0], 1000.0, rtol=1e-6)
    assert masked(u, g, min_share=0.5)[0] == 2.0
    assert masked(u, g, min_share=1)[0] == 1.0
    np.testing.assert_array_equal(masked(-u, -u * 0), 0.0)  # none agrees: no step


def test_signs_and_not_products_are_compared():
    tiny = jnp.full(2, 1e-30)
    np.testing.assert_array_equal(masked(tiny, tiny), tiny)


def test_gradients_that_never_turn_give_the_plain_chain():
    plain, w = optax.scale_by_adam(), jnp.zeros((2, 3))
    grads = [jnp.abs(jnp.asarray(g)) for g in trajectories.gradients((2, 3))]
    wanted, _ = trajectories.parameters(plain, w, grads)
    got, _ = trajectories.parameters(wrappers.cautious(plain), w, grads)
    np.testing.assert_array_equal(got, wanted)


def test_no_step_of_a_cautious_momentum_leads_uphill():
    """Plain momentum overshoots the minimum of a quadratic and climbs beyond it."""
    curvature = jnp.array([1.0, 3.0, 10.0])

    def uphill(inner):
        tx = optax.chain(inner, links.scale_by_learning_rate(0.02))

        def body(carry, _):
            x, state = carry
            updates, state = tx.update(curvature * x, state)
            return (x + updates, state), jnp.max(updates * curvature * x)

        x = jnp.ones(3)
        slopes = jax.lax.scan(body, (x, tx.init(x)), length=60)[1]
        return int(jnp.sum(slopes > 0))

    assert uphill(optax.trace(0.9)) > 10
    assert uphill(wrappers.cautious(optax.trace(0.9))) == 0


def test_nan_is_kept_in_its_leaf_and_empty_leaves_pass():
    got = masked({"a": jnp.array([jnp.nan, 1.0]), "b": U}, {"a": jnp.ones(2), "b": G})
    assert np.isnan(got["a"][0])
    np.testing.assert_array_equal(got["b"], [2.0, 0.0, 4.0, 0.0])
    assert masked(jnp.zeros((0, 3)), jnp.zeros((0, 3))).shape == (0, 3)
    assert masked({}, {}) == {}


def test_around_an_optimizer_decay_is_masked_too_and_behind_it_is_not():
    w, zero = jnp.ones(3), jnp.zeros(3)
    whole = wrappers.cautious(optimizers.adamw(0.1, weight_decay=0.5), downhill=True)
    np.testing.assert_array_equal(whole.update(zero, whole.init(w), w)[0], 0.0)
    behind = optax.chain(
        wrappers.cautious(optax.scale_by_adam()),
        links.add_decayed_weights(0.5),
        links.scale_by_learning_rate(0.1),
    )
    updates, _ = behind.update(zero, behind.init(w), w)
    np.testing.assert_allclose(updates, -0.05)


def test_half_precision_gradients_are_averaged_in_float32():
    tx = wrappers.cautious(optax.scale_by_adam())
    half = jnp.ones(2, jnp.bfloat16)
    updates, state = tx.update(half, tx.init(half), half)
    assert updates.dtype == jnp.bfloat16
    assert state.nu.dtype == jnp.float32


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="min_share must be above 0 and at most 1"):
        wrappers.cautious(optax.identity(), min_share=share)
