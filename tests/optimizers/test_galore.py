"""GaLore: which side, when directions change, how much state; against Optax's."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import kernels, optimizers, trees
from tests.optimizers import trajectories

ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-6}


def first_step(gradient, **settings):
    tx = optimizers.scale_by_galore(**{"scale": 1.0, **settings})
    gradient = {"kernel": jnp.asarray(gradient)}
    return tx.update(gradient, tx.init(gradient))


def floats(state):
    return sum(x.size for x in jax.tree.leaves(state) if x.ndim)


@pytest.mark.parametrize(
    ("shape", "side", "count"),
    [
        ((1024, 256), "short", 147456),
        ((1024, 256), "long", 98304),
        ((256, 1024), "short", 147456),
        ((256, 1024), "long", 98304),
        ((1024, 256), "out", 147456),
        ((1024, 256), "in", 98304),
        ((1024, 256), "both", 64 * (1024 + 256) + 2 * 64 * 64),
    ],
    ids=str,
)
def test_the_state_has_the_published_size(shape, side, count):
    tx = optimizers.scale_by_galore(rank=64, side=side)
    params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    assert floats(jax.eval_shape(tx.init, params)) == count


@pytest.mark.parametrize("side", ["short", "long", "in", "out", "both"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)], ids=str)
def test_with_every_direction_the_step_is_adam_s_in_that_basis(shape, side):
    gradient = trajectories.gradients(shape)[0]
    rank = min(shape)
    updates, state = first_step(gradient, rank=rank, side=side, eps=0.0)
    left, right = ((b if b is None else b[0]) for b in state.bases[0])
    low = kernels.project(jnp.asarray(gradient), left, right)
    # Of the long side of a rectangle a basis of `rank` vectors holds all of G, too.
    want = kernels.lift(jnp.sign(low), left, right)
    np.testing.assert_allclose(updates["kernel"], want, atol=2e-3)


def test_a_gradient_of_that_rank_is_projected_without_error():
    rng = np.random.default_rng(0)
    gradient = jnp.asarray(rng.normal(size=(6, 2)) @ rng.normal(size=(2, 8)), "float32")
    updates, state = first_step(gradient, rank=2)
    basis = state.bases[0][0][0]
    np.testing.assert_allclose(basis @ basis.T @ gradient, gradient, atol=1e-5)
    # Adam's first step has entries of one: its norm is the root of their number.
    np.testing.assert_allclose(jnp.linalg.norm(updates["kernel"]), 4, rtol=1e-4)


@pytest.mark.parametrize("basis", [kernels.singular_basis, kernels.range_basis])
def test_a_transposed_matrix_takes_the_transposed_step(basis):
    gradient = trajectories.gradients((4, 7))[0]
    # In the bases themselves the two agree: Adam's step depends on them.
    wide, _ = first_step(gradient, rank=2, basis=basis)
    tall, _ = first_step(gradient.T, rank=2, basis=basis)
    np.testing.assert_allclose(tall["kernel"].T, wide["kernel"], atol=1e-4)


def test_a_square_matrix_is_projected_on_its_fan_in():
    _, state = first_step(np.eye(3, dtype=np.float32) + 1, rank=1)
    fan_in, fan_out = state.bases[0]
    assert fan_in.shape == (1, 3, 1) and fan_out is None


def test_directions_change_every_so_many_steps_and_moments_stay():
    grads = [{"kernel": jnp.asarray(g)} for g in trajectories.gradients((4, 6), 7)]
    tx = optimizers.scale_by_galore(rank=2, every=3)
    state, bases = tx.init(grads[0]), []
    for t, g in enumerate(grads):
        mu = state.mu[0]
        _, state = tx.update(g, state)
        bases.append(np.asarray(state.bases[0][0][0]))
        low = kernels.project(g["kernel"], bases[-1])
        np.testing.assert_allclose(
            state.mu[0][0], 0.9 * mu[0] + 0.1 * low, atol=1e-5, err_msg=str(t)
        )
    changed = [bool(np.abs(a - b).max() > 1e-3) for a, b in itertools.pairwise(bases)]
    assert changed == [False, False, True, False, False, True]


def test_the_decomposition_is_inside_a_branch_of_the_compiled_step():
    gradient = {"kernel": jnp.ones((4, 6))}
    tx = optimizers.scale_by_galore(rank=2)
    jaxpr = jax.make_jaxpr(tx.update)(gradient, tx.init(gradient)).jaxpr
    outside = {str(eqn.primitive) for eqn in jaxpr.eqns}
    assert "cond" in outside
    inside = [str(eqn) for eqn in jaxpr.eqns if str(eqn.primitive) == "cond"]
    others = [str(eqn) for eqn in jaxpr.eqns if str(eqn.primitive) != "cond"]
    assert "svd" in "".join(inside) and "svd" not in "".join(others)


def test_a_mean_of_gradients_is_a_step_on_their_mean_to_the_gap_s_accuracy():
    params = {"kernel": jnp.ones((4, 6))}
    tx = optimizers.galore(0.1, rank=2)
    multi = optax.MultiSteps(tx, 3).gradient_transformation()
    gradient = {"kernel": jnp.asarray(trajectories.gradients((4, 6))[0])}
    state = multi.init(params)
    for factor in (0.5, 1.0, 1.5):
        part = jax.tree.map(lambda g, c=factor: c * g, gradient)
        updates, state = multi.update(part, state, params)
    want, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], want["kernel"], atol=1e-5)


@pytest.mark.parametrize("order", ["after", "together"])
def test_decay_is_of_the_moved_weights_unless_together(order):
    params = {"kernel": jnp.full((2, 2), 3.0)}
    gradient = {"kernel": jnp.asarray(trajectories.gradients((2, 2))[0])}
    settings = {"rank": 2, "scale": 1.0}
    plain = optimizers.galore(0.5, **settings)
    step, _ = plain.update(gradient, plain.init(params), params)
    tx = optimizers.galore(0.5, weight_decay=0.2, decay_order=order, **settings)
    got, _ = tx.update(gradient, tx.init(params), params)
    where = params["kernel"] + (step["kernel"] if order == "after" else 0.0)
    np.testing.assert_allclose(
        got["kernel"], step["kernel"] - 0.1 * where, rtol=1e-5, atol=1e-6
    )


def test_the_long_side_is_optax_s():
    grads = [{"kernel": jnp.asarray(g)} for g in trajectories.gradients((6, 4))]
    ours = optimizers.scale_by_galore(rank=2, side="long", scale=1.0, eps=1e-30)
    theirs = optax.contrib.scale_by_galore(
        rank=2, base_optimizer=optax.scale_by_adam(eps=1e-30)
    )
    state, other = ours.init(grads[0]), theirs.init(grads[0])
    for g in grads:
        got, state = ours.update(g, state)
        want, other = theirs.update(g, other)
        np.testing.assert_allclose(got["kernel"], want["kernel"], atol=1e-4)


def test_matrices_go_to_galore_and_the_rest_elsewhere():
    params = {"up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}
    tx = optimizers.galore(0.1, rank=2, rest=optax.sgd(0.5))
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["up"]["bias"], -0.5)
    assert floats(state) == 2 * 4 + 2 * 2 * 6


def test_a_tree_without_matrices_has_nothing_to_do():
    params = {"bias": jnp.ones(3)}
    tx = optimizers.galore(0.1, rest=optax.sgd(0.5))
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    np.testing.assert_array_equal(updates["bias"], -0.5)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_too_high_a_rank_names_the_leaf_and_the_cure():
    params = {"up": {"kernel": jnp.ones((4, 6))}, "down": {"kernel": jnp.ones((6, 9))}}
    with pytest.raises(
        ValueError, match=r"leaf 'up/kernel' has shape \(4, 6\).*rank=5.*`rest`"
    ):
        optimizers.galore(0.1, rank=5).init(params)
    # The cure.
    views = functools.partial(trees.matrix_views, rules=[("up", None)])
    optimizers.galore(0.1, rank=5, views=views, rest=optax.sgd(0.1)).init(params)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"side": "left"}, r"side must be one of .*'short'.*got 'left'"),
        ({"rank": 0}, r"rank must be an integer of 1 or more, got 0"),
        ({"rank": 0.25}, r"rank must be an integer of 1 or more, got 0.25"),
        ({"every": 0}, r"every must be an integer of 1 or more, got 0"),
        ({"decay_order": "before"}, r"decay_order must be one of .*got 'before'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_when_the_chain_is_built(argument, words):
    with pytest.raises(ValueError, match=words):
        optimizers.galore(0.1, rest=optax.sgd(0.1), **argument)


def test_a_leaf_that_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(3,\).*rest="):
        optimizers.galore(0.1).init({"bias": jnp.ones(3)})


def test_bias_correction_may_be_left_out():
    gradient = trajectories.gradients((4, 6))[0]
    with_it, _ = first_step(gradient, rank=2)
    without, _ = first_step(gradient, rank=2, bias_correction=False)
    ratio = math.sqrt(1 - ADAM["b2"]) / (1 - ADAM["b1"])
    np.testing.assert_allclose(with_it["kernel"], ratio * without["kernel"], rtol=1e-4)
