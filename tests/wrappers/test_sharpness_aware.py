"""Sharpness-aware steps: the published numbers, Optax's defects, missing losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import estimators, optimizers, wrappers
from optlab.wrappers import sharpness_aware


def bowl(w):
    return 0.5 * (w["x"] ** 2 + 10 * w["y"] ** 2)


def ones(dtype=jnp.float32):
    return {"x": jnp.ones((), dtype), "y": jnp.ones((), dtype)}


def walk(tx, params, steps=1, loss=bowl, name="loss_fn"):
    def step(carry, _):
        params, state = carry
        more = {name: loss}
        updates, state = tx.update(jax.grad(loss)(params), state, params, **more)
        return (optax.apply_updates(params, updates), state), params

    start = (params, tx.init(params))
    return jax.jit(lambda start: jax.lax.scan(step, start, length=steps)[0])(start)


@pytest.mark.parametrize("name", ["loss_fn", "value_fn"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_first_step_is_the_published_one(name, dtype):
    tx = sharpness_aware(optax.sgd(0.01), rho=0.1)
    w = ones(dtype)
    more = {name: bowl}
    updates, _ = tx.update(jax.grad(bowl)(w), tx.init(w), w, **more)
    assert updates["y"].dtype == dtype
    rtol = 1e-6 if dtype == jnp.float32 else 2.0**-7
    steps = [float(updates["x"]), float(updates["y"])]
    np.testing.assert_allclose(steps, [-0.0100995, -0.1099504], rtol=rtol)


def test_steps_are_those_of_the_estimator_and_the_optimizer():
    tx, w = optimizers.adamw(0.05), ones()
    state = tx.init(w)
    for _ in range(4):
        grads = estimators.sharpness_aware_value_and_grad(bowl, w, rho=0.3).grads
        updates, state = tx.update(grads, state, w)
        w = optax.apply_updates(w, updates)
    got, _ = walk(sharpness_aware(tx, rho=0.3), ones(), 4)
    np.testing.assert_allclose([got["x"], got["y"]], [w["x"], w["y"]], rtol=1e-6)


def test_steps_are_those_of_optax_where_that_is_defined():
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    theirs = optax.contrib.sam(optax.sgd(0.01), climb, opaque_mode=True)

    def step(params, state):
        grads = jax.grad(bowl)(params)
        updates, state = theirs.update(
            grads, state, params, grad_fn=lambda p, _: jax.grad(bowl)(p)
        )
        return optax.apply_updates(params, updates), state

    step = jax.jit(step)
    w, state = ones(), theirs.init(ones())
    for _ in range(5):
        w, state = step(w, state)
    got, _ = walk(sharpness_aware(optax.sgd(0.01), rho=0.1), ones(), 5)
    np.testing.assert_allclose([got["x"], got["y"]], [w["x"], w["y"]], rtol=1e-6)
    # At rest that one divides nothing by nothing.
    rest = jax.tree.map(jnp.zeros_like, ones())
    assert np.isnan(step(rest, theirs.init(rest))[0]["x"])
    still, _ = walk(sharpness_aware(optax.sgd(0.01), rho=0.1), rest, 2)
    assert still["x"] == still["y"] == 0


def test_a_schedule_counts_the_steps():
    tx = sharpness_aware(optimizers.sgd(optax.linear_schedule(0.02, 0.0, 4)))
    _, state = walk(tx, ones(), 3)
    assert int(optax.tree.get(state, "count")) == 3
    np.testing.assert_allclose(optax.tree.get(state, "learning_rate"), 0.01)


def test_without_a_radius_steps_are_the_inner_ones():
    got, _ = walk(sharpness_aware(optax.adam(0.1), rho=0.0), ones(), 3)
    wanted, _ = walk(optax.with_extra_args_support(optax.adam(0.1)), ones(), 3)
    np.testing.assert_allclose([got["x"], got["y"]], [wanted["x"], wanted["y"]])


def test_around_small_steps_each_batch_has_its_own_perturbation():
    """Within them the loss would be that of the last batch alone."""
    many = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    tx = sharpness_aware(many, rho=0.1)
    w, state, wanted = jnp.ones(2), tx.init(jnp.ones(2)), 0.0
    for scale in (jnp.array([1.0, 10.0]), jnp.array([-5.0, 2.0])):

        def loss(w, scale=scale):
            return jnp.sum(scale * w**2) / 2

        wanted -= estimators.sharpness_aware_value_and_grad(loss, w, rho=0.1).grads / 2
        updates, state = tx.update(jax.grad(loss)(w), state, w, loss_fn=loss)
    np.testing.assert_allclose(updates, wanted, rtol=1e-6)


def test_around_masks_it_works_and_within_it_says_so():
    mask = {"x": True, "y": False}
    inner = optax.chain(
        optax.masked(optax.sgd(0.01), mask),
        optax.masked(optax.set_to_zero(), {"x": False, "y": True}),
    )
    got, _ = walk(sharpness_aware(inner, rho=0.1), ones())
    np.testing.assert_allclose([got["x"], got["y"]], [0.9899005, 1.0], rtol=1e-6)
    within = optax.masked(sharpness_aware(optax.sgd(0.01)), mask)
    with pytest.raises(ValueError, match=r"hidden by optax\.masked.*Put sharpness_aw"):
        within.update(ones(), within.init(ones()), ones(), loss_fn=bowl)


def test_what_is_missing_or_makes_no_sense_is_named():
    tx = wrappers.sharpness_aware(optax.sgd(0.1))
    w = ones()
    with pytest.raises(TypeError, match="sharpness_aware: an update needs the loss"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(TypeError, match="needs the loss and the parameters"):
        tx.update(w, tx.init(w), loss_fn=bowl)
    with pytest.raises(TypeError, match=r"loss_fn is the loss as a function .* float"):
        tx.update(w, tx.init(w), w, loss_fn=0.5)
    with pytest.raises(ValueError, match=r"sharpness_aware: rho must be .* got -1"):
        wrappers.sharpness_aware(optax.sgd(0.1), rho=-1)
