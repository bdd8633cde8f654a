"""MoMo and MoMo-Adam: the authors' decay, bounds, and no step from nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, schedules
from tests.conformance import references
from tests.optimizers import bowl, trajectories

METHODS = [optimizers.momo, optimizers.momo_adam]
every_method = pytest.mark.parametrize("make", METHODS, ids=lambda f: f.__name__)
BOTH = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def half_square(x):
    return x @ x / 2


@every_method
@BOTH
def test_it_trains_with_a_rate_that_is_far_too_large(make, dtype):
    assert bowl.final_loss(make(100.0), dtype) < 1e-2


@BOTH
def test_without_the_bound_the_same_rate_is_lost(dtype):
    # A bound far below any loss: the step is always the largest.
    assert not bowl.final_loss(optimizers.momo(100.0, lower_bound=-1e30), dtype) < 7


@every_method
@BOTH
def test_a_bound_that_is_raised_on_the_way_still_trains(make, dtype):
    tx = make(1.0, lower_bound=-10.0, adapt_lower_bound=True)
    x, _, bound = bowl.descend(tx, dtype, watch=lambda state: state.bound)
    assert bowl.loss(x) < 0.1
    assert bound.dtype == "float32" and (bound >= -10).all() and bound[-1] > -1


def test_the_step_is_divided_with_the_weights():
    x, g = jnp.array([1.0, 2.0]), jnp.ones(2)
    settings = {"weight_decay": 1.0, "lower_bound": -1e3}
    ours = optimizers.momo(0.1, **settings)
    theirs = optax.contrib.momo(0.1, **settings)
    ends = [x + tx.update(g, tx.init(x), x, value=1.0)[0] for tx in (ours, theirs)]
    np.testing.assert_allclose(ends[0], [0.8181818, 1.7272727], rtol=1e-6)
    np.testing.assert_allclose(ends[1], [0.8090909, 1.7181818], rtol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optimizers.momo, optax.contrib.momo),
        (optimizers.momo_adam, optax.contrib.momo_adam),
    ],
    ids=["momo", "momo_adam"],
)
def test_without_decay_optax_takes_the_same_steps(ours, theirs):
    ends = [bowl.descend(make(0.5), steps=20)[0] for make in (ours, theirs)]
    np.testing.assert_allclose(*ends, rtol=1e-4)


def test_optax_stops_at_small_gradients():
    x, g = jnp.zeros(2), jnp.full(2, 1e-9)
    ends = [
        float(tx.update(g, tx.init(x), x, value=1e-16)[0][0])
        for tx in (optimizers.momo(100.0), optax.contrib.momo(100.0))
    ]
    # 1e-16 over the squared length 2e-18 is 50.
    np.testing.assert_allclose(ends, [-50 * 1e-9, 0.0], rtol=1e-5)


SETTINGS = [
    (optimizers.momo, {"weight_decay": 0.1}),
    (optimizers.momo, {"bias_correction": True, "weight_decay": 0.1}),
    (
        optimizers.momo,
        {"adapt_lower_bound": True, "lower_bound": -3.0, "bias_correction": True},
    ),
    (optimizers.momo_adam, {"weight_decay": 0.1, "lower_bound": 1.0}),
    (
        optimizers.momo_adam,
        {"adapt_lower_bound": True, "lower_bound": -3.0, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize(("make", "settings"), SETTINGS, ids=range(len(SETTINGS)))
def test_forty_steps_in_which_the_bound_matters(make, settings):
    settings = {"learning_rate": 0.5, **settings}
    with jax.enable_x64(True):
        tx = make(**settings)
        x, points = jnp.array(bowl.START), []
        state, update = tx.init(x), jax.jit(tx.update)
        for _ in range(40):
            updates, state = update(x, state, x, value=half_square(x))
            x = x + updates
            points.append(np.asarray(x))
    grads = [np.array(bowl.START), *points[:-1]]
    known = {**make.__kwdefaults__, **settings, "loss": half_square}
    want = references.REFERENCES[make.__name__](known)(grads[0], grads)
    np.testing.assert_allclose(points, want, atol=1e-8)


@every_method
@BOTH
def test_a_first_gradient_of_zero_is_harmless(make, dtype):
    tx, x = make(1.0), jnp.array(bowl.START, dtype)
    zero, state = jnp.zeros(3, dtype), tx.init(x)
    updates, state = tx.update(zero, state, x, value=7.0)
    np.testing.assert_array_equal(updates, zero)
    updates, state = tx.update(x, state, x, value=7.0)
    assert jnp.isfinite(updates).all() and (updates < 0).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@every_method
def test_what_is_not_finite_is_passed_over(make):
    tx, x = make(1.0), jnp.array(bowl.START)
    _, before = tx.update(x, tx.init(x), x, value=7.0)
    bad = x.at[0].set(jnp.nan)
    for g, value in ((bad, 7.0), (x, jnp.nan), (x, jnp.inf)):
        updates, after = tx.update(g, before, x, value=value)
        np.testing.assert_array_equal(updates, 0)
        jax.tree.map(
            np.testing.assert_array_equal,
            after._replace(rate=None),
            before._replace(rate=None),
        )


@every_method
def test_a_loss_in_half_precision_and_a_mean_of_it_that_does_not_stall(make):
    tx, x = make(1e-3), jnp.zeros(3, jnp.bfloat16)
    g, loss = jnp.ones(3, jnp.bfloat16), jnp.asarray(1.0, jnp.bfloat16)

    @jax.jit
    def run(state):
        def step(k, state):
            # The first loss is 2, all others 1: the mean goes from one to the other.
            value = jnp.where(k == 0, 2 * loss, loss)
            return tx.update(g, state, x, value=value)[1]

        return jax.lax.fori_loop(0, 200, step, state)

    state = run(tx.init(x))
    np.testing.assert_allclose(state.value, 1.0, rtol=1e-5)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", "float32"}


def test_a_loss_that_has_been_reached_takes_no_step():
    x = jnp.array(bowl.START)
    for bound, moves in ((7.0, False), (6.9, True)):
        tx = optimizers.momo(1.0, lower_bound=bound)
        updates, _ = tx.update(x, tx.init(x), x, value=7.0)
        assert bool(jnp.any(updates != 0)) == moves


def test_with_a_small_rate_and_no_decay_momo_adam_is_adam():
    grads = trajectories.gradients((4,), steps=5)
    value = {"extra": lambda params, gradient: {"value": 1e6}}
    ours, _ = trajectories.parameters(
        optimizers.momo_adam(1e-3), jnp.ones(4), grads, compiled=True, **value
    )
    adam, _ = trajectories.parameters(
        optax.adam(1e-3), jnp.ones(4), grads, compiled=True
    )
    np.testing.assert_allclose(ours, adam, rtol=1e-6)


@every_method
def test_the_state_has_the_published_bytes(make):
    got = trajectories.state_bytes(make(), jnp.ones((64, 64), jnp.bfloat16))
    assert got == (4 if make is optimizers.momo else 8) * 64**2


@every_method
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"{}: b1 must be at least 0 and below 1, got 1\.0"),
        ({"weight_decay": -1.0}, r"{}: weight_decay must be 0 or more, got -1\.0"),
        (
            {"learning_rate": schedules.per_group({"a": 1.0}, lambda tree: "a")},
            "{}: learning_rate must be one for all leaves, not one a group",
        ),
    ],
    ids=["b1", "weight_decay", "learning_rate"],
)
def test_what_makes_no_sense_is_refused_by_name(make, settings, said):
    with pytest.raises(ValueError, match=said.format(make.__name__)):
        make(**settings)


@every_method
def test_a_missing_or_unfit_loss_is_named(make):
    tx, x = make(), jnp.ones(2)
    state, who = tx.init(x), make.__name__
    with pytest.raises(TypeError, match=f"{who}: an update needs the loss: .*value=lo"):
        tx.update(x, state, x)
    with pytest.raises(TypeError, match=f"{who}: needs the parameters: update"):
        tx.update(x, state, value=1.0)
    with pytest.raises(ValueError, match=r"value must be one number, got shape \(2,\)"):
        tx.update(x, state, x, value=x)


def test_what_momo_adam_divides_by_is_checked():
    with pytest.raises(ValueError, match=r"momo_adam: eps must be above 0, got 0\.0"):
        optimizers.momo_adam(eps=0.0)
    with pytest.raises(ValueError, match=r"momo_adam: b2 must be .* below 1, got 1\.0"):
        optimizers.momo_adam(b2=1.0)
