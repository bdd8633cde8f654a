"""APOLLO: factors of channels and of matrices, its memory, keys and the Mini form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories

MINI = {"rank": 1, "granularity": "tensor", "scale": 128.0}


def gradients(shape=(4, 6), steps=4):
    return [{"kernel": jnp.asarray(g)} for g in trajectories.gradients(shape, steps)]


def updates_of(tx, grads):
    state, out, update = tx.init(grads[0]), [], jax.jit(tx.update)
    for g in grads:
        u, state = update(g, state)
        out.append(u["kernel"])
    return out, state


@pytest.mark.parametrize(("shape", "short"), [((4, 6), 0), ((6, 4), 1)], ids=str)
def test_each_channel_of_the_long_side_has_its_factor(shape, short):
    grads = gradients(shape)
    got, _ = updates_of(optimizers.scale_by_apollo(rank=2), grads)
    factors = got[-1] / grads[-1]["kernel"]
    np.testing.assert_allclose(factors.std(axis=short), 0, atol=1e-5)
    assert factors.std(axis=1 - short).min() > 1e-3


def test_the_mini_form_has_one_factor_for_a_matrix():
    grads = gradients()
    got, _ = updates_of(optimizers.scale_by_apollo(**MINI), grads)
    factors = got[-1] / grads[-1]["kernel"]
    np.testing.assert_allclose(factors, factors[0, 0], rtol=1e-4)
    plain, _ = updates_of(optimizers.scale_by_apollo(**{**MINI, "scale": 1.0}), grads)
    np.testing.assert_allclose(got[-1], np.sqrt(128) * plain[-1], rtol=1e-4)


def test_the_first_step_of_many_coordinates_has_adam_s_size_in_each_channel():
    # ||r|| is near ||g|| when coordinates are many, and ||a|| is root r in Adam's first
    # step: a channel moves by sqrt(r) in all, whatever its gradient's length.
    gradient = {"kernel": jnp.asarray(trajectories.gradients((400, 500))[0])}
    scaled = gradient["kernel"] * jnp.linspace(1, 100, 500)
    (got,), _ = updates_of(
        optimizers.scale_by_apollo(rank=300, growth=jnp.inf), [{"kernel": scaled}]
    )
    np.testing.assert_allclose(jnp.linalg.norm(got, axis=0), 300**0.5, rtol=0.3)


def test_the_projection_changes_every_so_many_steps_and_costs_no_state():
    (gradient,) = gradients(steps=1)
    # Without memory the factor depends on the gradient and the projection alone.
    tx = optimizers.scale_by_apollo(rank=1, every=2, b1=0.0, b2=0.0, growth=jnp.inf)
    state, factors = tx.init(gradient), []
    for _ in range(4):
        updates, state = tx.update(gradient, state)
        factors.append(np.asarray(updates["kernel"] / gradient["kernel"])[0])
    np.testing.assert_allclose(factors[1], factors[0], rtol=1e-5)
    np.testing.assert_allclose(factors[3], factors[2], rtol=1e-5)
    assert np.abs(factors[2] - factors[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "count"), [({"rank": 64}, 2 * 64 * 1024 + 1), (MINI, 2 * 1024 + 1)]
)
def test_the_state_has_the_published_size(settings, count):
    tx = optimizers.scale_by_apollo(**settings)
    params = {"kernel": jax.ShapeDtypeStruct((1024, 256), jnp.float32)}
    state = jax.eval_shape(tx.init, params)
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == count


def test_the_update_grows_by_one_per_cent_at_most():
    small, large = gradients(steps=2)
    small = jax.tree.map(lambda g: 1e-6 * g, small)  # below eps: short steps
    _, first = updates_of(optimizers.scale_by_apollo(rank=2), [small])
    _, second = updates_of(optimizers.scale_by_apollo(rank=2), [small, large])
    np.testing.assert_allclose(second.norm[0], 1.01 * first.norm[0], rtol=1e-5)


def test_the_key_decides_and_each_matrix_has_its_own_projection():
    gradient = {
        "layers": {"kernel": jnp.broadcast_to(gradients()[0]["kernel"], (2, 4, 6))}
    }

    def run(key):
        tx = optimizers.scale_by_apollo(rank=1, key=key)
        return np.asarray(tx.update(gradient, tx.init(gradient))[0]["layers"]["kernel"])

    one = run(jax.random.key(1))
    np.testing.assert_array_equal(one, run(jax.random.key(1)))
    assert np.abs(one - run(jax.random.key(2))).max() > 1e-3
    assert np.abs(one[0] - one[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"granularity": "row"}, r"granularity must be one of .*got 'row'"),
        ({"rank": 0}, "rank must be an integer of 1 or more, got 0"),
        ({"every": 0}, "every must be an integer of 1 or more, got 0"),
        ({"decay_order": "before"}, r"decay_order must be one of .*got 'before'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_when_the_chain_is_built(argument, words):
    with pytest.raises(ValueError, match=words):
        optimizers.apollo(0.1, rest=optax.sgd(0.1), **argument)


def test_too_high_a_rank_names_the_leaf():
    with pytest.raises(ValueError, match=r"leaf 'kernel' has shape \(4, 6\).*rank=5"):
        optimizers.apollo(0.1, rank=5).init({"kernel": jnp.ones((4, 6))})
