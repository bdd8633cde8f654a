"""Sophia: signs without curvature, Newton with much, decay first, late refresh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import optimizers


def steps(tx, params, grads, diagonal):
    state, seen = tx.init(params), []
    for g in grads:
        updates, state = tx.update(g, state, params, hessian_diag=diagonal)
        seen.append(updates)
    return seen


def test_without_curvature_it_steps_by_the_sign():
    g = jnp.array([3.0, -1e-3])
    (updates,) = steps(optimizers.sophia(0.1), g, [g], jnp.ones(2))
    np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=1e-6)


def test_with_much_curvature_the_second_step_is_newton_s():
    g, rho = jnp.array([3.0, -4.0]), 0.04
    tx = optimizers.sophia(0.1, b2=0.9, gamma=rho, every=10)
    _, updates = steps(tx, g, [g, g], jnp.full(2, 1e4))
    # h = (1 - b2) 1e4 from the refresh after the first step
    np.testing.assert_allclose(updates, -0.1 * g / (rho * 1e3), rtol=1e-5)


def test_negative_curvature_counts_as_none():
    g = jnp.array([3.0, -4.0])
    _, updates = steps(optimizers.sophia(0.1), g, [g, g], jnp.full(2, -1e4))
    np.testing.assert_allclose(updates, -0.1 * jnp.sign(g), rtol=1e-6)


def test_decay_takes_the_old_parameters():
    w, g = jnp.array([10.0]), jnp.array([3.0])
    tx = optimizers.sophia(0.1, weight_decay=0.5)
    updates, _ = tx.update(g, tx.init(w), w, hessian_diag=jnp.ones(1))
    np.testing.assert_allclose(updates, -0.1 * (1 + 0.5 * 10), rtol=1e-6)


def test_the_curvature_of_bfloat16_parameters_is_float32():
    w = jnp.ones(2, jnp.bfloat16)
    tx = optimizers.sophia(0.1)
    updates, state = tx.update(
        w, tx.init(w), w, loss_fn=lambda p: jnp.sum(p**3), key=jax.random.key(0)
    )
    assert updates.dtype == jnp.bfloat16
    curvature = optax.tree.get(state, "nu")
    assert curvature.dtype == jnp.float32
    np.testing.assert_allclose(curvature, 0.01 * 6, rtol=1e-2)
