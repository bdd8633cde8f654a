"""Adan against the authors' numbers, a fresh start and Optax's weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, schedules
from tests.optimizers import fixture, trajectories

PUBLISHED = {
    "no decay": (
        {},
        [
            [[0.90000001, -1.900000005], [0.4000000033, 2.900000003]],
            [[0.9453981526, -1.828050283], [0.3104186621, 2.801435026]],
            [[0.9429458325, -1.800597957], [0.3385326122, 2.703172121]],
        ],
    ),
    "proximal": (
        {"weight_decay": 0.1},
        [
            [[0.8910891188, -1.881188124], [0.3960396073, 2.871287131]],
            [[0.9272151103, -1.79132515], [0.3034240258, 2.74526946]],
            [[0.915606723, -1.746408737], [0.3282554216, 2.620798569]],
        ],
    ),
    "together": (
        {"weight_decay": 0.1, "decay_order": "together"},
        [
            [[0.89000001, -1.880000005], [0.3950000033, 2.870000002]],
            [[0.9264981525, -1.789250283], [0.3014686621, 2.742735026]],
            [[0.9147808509, -1.743905454], [0.3265679255, 2.617044771]],
        ],
    ),
}
# With 1 - b2 for b2, as Optax 0.2.8 has it.
OPTAX_SECOND = [[0.9086245075, -1.806488145], [0.3024896077, 2.800611594]]


@pytest.mark.parametrize("case", PUBLISHED)
def test_equals_the_authors_numbers(case):
    settings, want = PUBLISHED[case]
    got = fixture.run(optimizers.adan, **settings)
    np.testing.assert_allclose(got, want, rtol=fixture.DIGITS)


def test_the_weight_of_the_difference_is_b2_and_not_its_complement():
    second = fixture.run(optimizers.adan, steps=2)[-1]
    assert np.abs(second - OPTAX_SECOND).max() > 0.03


def test_decay_follows_the_schedule():
    rate = schedules.linear(0.5, total_steps=2)
    tx = optimizers.adan(rate, weight_decay=0.5)
    w = jnp.full(1, 2.0)
    points, _ = trajectories.parameters(tx, w, [jnp.zeros(1)] * 3)
    # Without a gradient, over 1 + eta / 2 at rates 1/2, 1/4 and 0.
    np.testing.assert_allclose(
        np.ravel(points), [2 / 1.25, 2 / 1.25 / 1.125, 2 / 1.25 / 1.125], rtol=1e-6
    )


def test_a_restart_is_a_fresh_start_and_the_schedule_goes_on():
    tx = optimizers.adan(schedules.linear(0.5, total_steps=8), weight_decay=0.1)
    grads = trajectories.gradients((2, 3), steps=4)
    (*_, w), state = trajectories.parameters(tx, jnp.ones((2, 3)), grads[:2])
    restart = jax.jit(
        lambda due, state: jax.lax.cond(
            due, optimizers.restart_adan, lambda s: s, state
        )
    )
    kept = restart(False, state)
    np.testing.assert_array_equal(kept[0].previous, grads[1])
    after = restart(True, state)
    assert (int(after[0].count), *trajectories.rates(after)) == (0, 0.5 * 7 / 8)
    fresh = tx.init(w)
    fresh = (fresh[0], state[1])
    got, _ = trajectories.parameters(tx, w, grads[2:], after)
    want, _ = trajectories.parameters(tx, w, grads[2:], fresh)
    np.testing.assert_array_equal(got, want)


def test_the_gradient_is_clipped_before_anything_and_so_remembered():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]]), "c": jnp.ones((0, 2))}
    for size in (1.0, 1e30, 1e-30, 0.0):
        grads = jax.tree.map(lambda g, size=size: size * g, tree)
        tx = optimizers.scale_by_adan(max_grad_norm=1.0)
        _, state = tx.update(grads, tx.init(tree))
        want = 4 * size if 5 * size <= 1 else 4 / 5
        np.testing.assert_allclose(state.previous["b"], [[want]], rtol=1e-6)
    tx = optimizers.scale_by_adan(max_grad_norm=1.0)
    assert tx.update({}, tx.init({}))[0] == {}


def test_sixteen_bytes_a_parameter():
    got = trajectories.state_bytes(optimizers.adan(0.1), jnp.ones((64, 64)))
    assert got == 16 * 64**2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"scale_by_adan: b1 must be at least 0 and below 1, got 1\.0"),
        ({"b3": -0.1}, r"scale_by_adan: b3 must be .*got -0\.1"),
        ({"eps": -1e-8}, "scale_by_adan: eps must be 0 or more, got -1e-08"),
        ({"weight_decay": -0.1}, r"adan: weight_decay must be 0 or more, got -0\.1"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm must be 0 or more, got -1\.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0, got 0; None is"),
        ({"decay_order": "before"}, r"decay_order must be one of .*got 'before'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.adan(0.1, **settings)


@pytest.mark.parametrize("order", ["proximal", "together"])
def test_missing_parameters_are_named(order):
    tx = optimizers.adan(0.1, weight_decay=0.1, decay_order=order)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., para"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_only_a_state_of_adan_can_be_restarted():
    with pytest.raises(ValueError, match="there is no ScaleByAdanState in the state"):
        optimizers.restart_adan(optax.adam(0.1).init(jnp.ones(2)))
