"""Normalised logistic descent: steps until all are right, and data that are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import estimators, optimizers

# 99 examples in one direction, and one nearly against it.
DATA = np.array([[1.0, 0.0]] * 99 + [[-0.5, 0.1]])


def margins(w):
    return jnp.asarray(DATA) @ w


@functools.cache
def descent():
    """Compiles (rate, whether to normalise) -> steps until every margin is positive."""

    def run(rate, normalize):
        tx = optimizers.normalized_logistic(rate)

        def step(carry):
            w, state = carry
            found = estimators.logistic_value_and_grad(margins, w)
            l1 = jnp.where(normalize, found.logit_grad_l1, 1.0)
            updates, state = tx.update(found.grads, state, w, logit_grad_l1=l1)
            return w + updates, state

        start = jnp.zeros(2)
        wrong = lambda carry: jnp.any(margins(carry[0]) <= 0)  # noqa: E731
        _, state = jax.lax.while_loop(wrong, step, (start, tx.init(start)))
        return state[1].count

    return jax.jit(run)


@pytest.mark.parametrize(
    ("rate", "plain", "normalized"),
    [(1e4, 96, 38), (100.0, 398, 38), (10.0, 4069, 28), (1.0, 40695, 454)],
)
def test_it_separates_the_data_in_the_steps_counted_by_hand(rate, plain, normalized):
    with jax.enable_x64(True):
        run = descent()
        assert int(run(rate, False)) == plain
        assert int(run(rate, True)) == normalized


def test_the_update_is_the_mean_gradient_weighted_by_how_wrong_examples_are():
    w = np.array([0.3, -0.2])
    p = 1 / (1 + np.exp(DATA @ w))
    with jax.enable_x64(True):
        found = estimators.logistic_value_and_grad(margins, jnp.asarray(w))
        tx = optimizers.normalized_logistic(0.5)
        # Arguments for other links of a chain are let through.
        given = {"logit_grad_l1": found.logit_grad_l1, "value": found.value}
        updates, _ = tx.update(found.grads, tx.init(w), **given)
        np.testing.assert_allclose(updates, 0.5 * (p @ DATA) / p.sum(), rtol=1e-12)


@pytest.mark.parametrize("margin", [1e4, 100.0, 88.0])
def test_data_that_are_separated_by_far_end_the_descent(margin):
    found = estimators.logistic_value_and_grad(lambda w: w * jnp.ones(3), margin)
    tx = optimizers.normalized_logistic(1.0)
    w = jnp.full((), margin)
    update = jax.jit(tx.update)
    updates, _ = update(found.grads, tx.init(w), logit_grad_l1=found.logit_grad_l1)
    assert float(updates) == 0
    # Just before, steps have their full length.
    found = estimators.logistic_value_and_grad(lambda w: w * jnp.ones(3), 80.0)
    updates, _ = update(found.grads, tx.init(w), logit_grad_l1=found.logit_grad_l1)
    np.testing.assert_allclose(updates, 1.0, rtol=1e-5)


def test_what_is_not_finite_passes_and_dtypes_stay():
    tx = optimizers.normalize_by_logit_gradient()
    g = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.array([jnp.nan, 1.0])}
    updates, _ = tx.update(g, tx.init(g), logit_grad_l1=0.5)
    np.testing.assert_array_equal(updates["a"].astype(float), 2)
    np.testing.assert_array_equal(updates["b"], [np.nan, 2])
    assert updates["a"].dtype == jnp.bfloat16
    updates, _ = tx.update(g, tx.init(g), logit_grad_l1=jnp.nan)
    assert np.isnan(updates["a"].astype(float)).all()
    assert tx.update({}, tx.init({}), logit_grad_l1=1.0)[0] == {}


@pytest.mark.parametrize(
    "tx",
    [optimizers.normalized_logistic(0.1), optimizers.normalize_by_logit_gradient()],
    ids=["alias", "link"],
)
def test_the_missing_argument_is_named_with_what_makes_it(tx):
    w = jnp.ones(2)
    said = r"needs the extra argument logit_grad_l1.*estimators\.logistic_value_and_gr"
    with pytest.raises(TypeError, match=said):
        tx.update(w, tx.init(w), w)


def test_without_buffers():
    state = jax.eval_shape(optimizers.normalized_logistic(0.1).init, jnp.ones((8, 8)))
    assert all(x.ndim == 0 for x in jax.tree.leaves(state))
