"""Momentum with three constants: published rates, its special cases and its x."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import optimizers, schedules
from tests.optimizers import trajectories

DIGITS = 1e-8
HARD = optimizers.momentum_constants("triple", smoothness=100.0, convexity=1.0)


def make(constants, **changes):
    names = ("learning_rate", "beta", "gamma", "delta")
    return optimizers.triple_momentum(
        **{**dict(zip(names, constants, strict=True)), **changes}
    )


def test_the_constants_of_condition_number_100():
    want = (0.019, 0.7363636364, 0.3875598086, 4.2631578947)
    np.testing.assert_allclose(HARD, want, rtol=1e-10)
    # They are the defaults.
    defaults = optimizers.triple_momentum.__kwdefaults__
    assert defaults == {name: getattr(HARD, name) for name in defaults}
    found = optimizers.momentum_constants("heavy_ball", smoothness=25, convexity=1)
    np.testing.assert_allclose(found, (1 / 9, 4 / 9, 0, 0), rtol=1e-14)
    for method in ("heavy_ball", "nesterov", "triple"):
        # Of a sphere: one step of gradient descent is enough.
        found = optimizers.momentum_constants(method, smoothness=4.0, convexity=4.0)
        np.testing.assert_allclose(found, (0.25, 0, 0, 0))


@pytest.mark.parametrize(
    ("method", "radius"), [("triple", 0.9), ("nesterov", 0.9), ("heavy_ball", 9 / 11)]
)
def test_on_quadratics_errors_fall_by_the_spectral_radius(method, radius):
    alpha, beta, gamma, _ = optimizers.momentum_constants(
        method, smoothness=100.0, convexity=1.0
    )
    curvature = np.linspace(1, 100, 1000)
    ones = np.ones_like(curvature)
    # From (y, m) to the next: m' = beta m + c y, y' = y - alpha (m' + gamma (m' - m)).
    turned = alpha * (gamma - (1 + gamma) * beta)
    step = np.array(
        [
            [1 - alpha * (1 + gamma) * curvature, turned * ones],
            [curvature, beta * ones],
        ]
    ).transpose(2, 0, 1)
    # At an end of the interval both eigenvalues are one, and half the digits are lost.
    assert np.abs(np.linalg.eigvals(step)).max() == pytest.approx(radius, abs=1e-6)


def test_the_reported_point_shrinks_by_rho_and_the_parameters_do_not():
    with jax.enable_x64(True):
        tx, y = make(HARD), jnp.ones(2)
        state, ys, xs = tx.init(y), [], []
        np.testing.assert_array_equal(
            optimizers.triple_momentum_eval_params(state, y), y
        )
        for _ in range(3):
            updates, state = tx.update(jnp.array([1.0, 100.0]) * y, state, y)
            y = y + updates
            ys.append(y)
            xs.append(optimizers.triple_momentum_eval_params(state, y))
        np.testing.assert_allclose(
            ys,
            [
                [0.9736363636, -1.6363636364],
                [0.9359181818, 1.4727272727],
                [0.8906391818, -1.3254545455],
            ],
            rtol=DIGITS,
        )
        want = [[0.9, -9.0], [0.81, 8.1], [0.729, -7.29]]
        np.testing.assert_allclose(xs, want, rtol=DIGITS)


@functools.cache
def walked(method):
    """The last three x of 200 steps on a function that traps heavy ball."""
    constants = optimizers.momentum_constants(method, smoothness=25.0, convexity=1.0)

    def slope(x):
        flat = jnp.where(x < 2, x + 24, 25 * x - 24)
        return jnp.where(x < 1, 25 * x, flat)

    def body(carry, _):
        y, state = carry
        updates, state = tx.update(slope(y), state, y)
        y = y + updates
        x = optimizers.triple_momentum_eval_params(state, y)
        return (y, state), (y, x)

    with jax.enable_x64(True):
        tx, start = make(constants), jnp.array(3.3)
        run = jax.jit(lambda y: jax.lax.scan(body, (y, tx.init(y)), length=200)[1])
        return [np.array(points[-3:]) for points in run(start)]


def test_heavy_ball_runs_in_a_circle_for_ever():
    ys, xs = walked("heavy_ball")
    want = [-1.8024489796, 0.6465306122, 2.1159183673]
    np.testing.assert_allclose(np.sort(ys), want, rtol=DIGITS)
    np.testing.assert_array_equal(xs, ys)


@pytest.mark.parametrize("method", ["nesterov", "triple"])
def test_the_others_reach_the_minimum_of_that_function(method):
    ys, xs = walked(method)
    assert np.abs([ys, xs]).max() < 1e-15


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_optax_sgd_where_the_constants_say_so(nesterov):
    rate = schedules.linear(0.5, total_steps=8)
    grads = trajectories.gradients((3, 4), steps=4)
    gamma = 0.9 if nesterov else 0.0
    ours = optimizers.triple_momentum(rate, beta=0.9, gamma=gamma, delta=gamma)
    theirs = optax.sgd(rate, momentum=0.9, nesterov=nesterov)
    w = jnp.ones((3, 4))
    got, state = trajectories.parameters(ours, w, grads)
    want, _ = trajectories.parameters(theirs, w, grads)
    if nesterov:
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    else:
        np.testing.assert_array_equal(got, want)
    # With delta = gamma the point to report is the one where gradients are taken.
    x = optimizers.triple_momentum_eval_params(state, got[-1])
    np.testing.assert_array_equal(x, got[-1])


def test_nesterov_reports_the_gradient_step_from_the_point_before():
    constants = optimizers.momentum_constants("nesterov", smoothness=9.0, convexity=1.0)
    tx, y = make(constants), jnp.ones(4)
    state = tx.init(y)
    for (g,) in zip(trajectories.gradients(4), strict=True):
        want = y - constants.alpha * g
        updates, state = tx.update(jnp.asarray(g), state)
        y = y + updates
        x = optimizers.triple_momentum_eval_params(state, y)
        np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-6)


def test_momentum_never_sees_the_rate_and_a_rate_of_zero_reports_the_parameters():
    rate = schedules.table([0.5, 0.0, 0.5])
    tx = make((rate, 0.5, 0.25, 1.25))
    y, state, seen = jnp.ones(1), tx.init(jnp.ones(1)), []
    for _ in range(3):
        updates, state = tx.update(jnp.ones(1), state)
        y = y + updates
        x = optimizers.triple_momentum_eval_params(state, y)
        seen.append([float(state[0].momentum[0]), float(y[0]), float(x[0])])
    # Sums 1, 1.5, 1.75; directions 1.25, -, 1.75 + 0.25 / 4; x a rate times m behind.
    np.testing.assert_allclose(
        seen,
        [
            [1.0, 0.375, -0.125],
            [1.5, 0.375, 0.375],
            [1.75, -0.53125, -1.40625],
        ],
    )


def test_the_reported_point_is_found_inside_of_other_states():
    w = {"a": jnp.ones(2), "b": jnp.full(3, 2.0, jnp.bfloat16)}
    bare = make((0.5, 0.5, 0.0, 1.0))
    labels = {"a": "mine", "b": "rest"}
    half = optax.partition({"mine": bare, "rest": optimizers.adamw(0.1)}, labels)
    injected = optax.inject_hyperparams(optimizers.triple_momentum)
    for tx, rest in (
        (bare, 0.0),
        (half, 2.0),
        (optax.masked(bare, {"a": True, "b": False}), 2.0),
        (optax.MultiSteps(bare, 1).gradient_transformation(), 0.0),
        (injected(0.5, beta=0.5, gamma=0.0, delta=1.0), 0.0),
    ):
        _, state = tx.update(w, tx.init(w), w)
        # y is left at w here: x = w - 0.5 * 1 * m, and m = w.
        x = optimizers.triple_momentum_eval_params(state, w)
        np.testing.assert_allclose(x["a"], 0.5)
        np.testing.assert_allclose(x["b"].astype(float), 1.0 if rest == 0 else rest)
        assert x["b"].dtype == jnp.bfloat16


def test_the_reported_point_is_found_in_the_state_of_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    w = nnx.state(model, nnx.Param)
    kernel = np.array(w["kernel"][...])
    optimizer = nnx.Optimizer(model, make((0.5, 0.5, 0.0, 1.0)), wrt=nnx.Param)
    optimizer.update(model, w)
    # y = w - w / 2, and x as far again.
    w = nnx.state(model, nnx.Param)
    x = optimizers.triple_momentum_eval_params(optimizer.opt_state, w)
    np.testing.assert_allclose(w["kernel"][...], kernel / 2)
    np.testing.assert_allclose(x["kernel"][...], np.zeros((3, 2)), atol=1e-7)


def test_four_bytes_a_parameter_and_one_number():
    state = jax.eval_shape(optimizers.triple_momentum(0.1).init, jnp.ones((64, 64)))
    arrays = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sum(x.size * x.dtype.itemsize for x in arrays) == 4 * 64**2
    assert len(jax.tree.leaves(state)) == len(arrays) + 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beta": 1.0}, r"scale_by_triple_momentum: beta must be .*below 1, got 1\.0"),
        ({"gamma": -0.1}, r"gamma must be 0 or more, got -0\.1"),
        ({"delta": -1.0}, r"delta must be 0 or more, got -1\.0"),
    ],
    ids=str,
)
def test_constants_out_of_range_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.triple_momentum(0.1, **settings)


@pytest.mark.parametrize(
    ("method", "smoothness", "convexity", "said"),
    [
        ("polyak", 2.0, 1.0, r"method must be one of \('heavy_ball', .*got 'polyak'"),
        ("triple", 1.0, 2.0, r"0 < convexity <= smoothness.* convexity=2\.0, sm"),
        ("triple", 1.0, 0.0, r"got convexity=0\.0, smoothness=1\.0"),
        ("triple", float("inf"), 1.0, "both finite, got .* smoothness=inf"),
        ("triple", float("nan"), 1.0, "both finite, got .* smoothness=nan"),
    ],
)
def test_a_class_of_functions_that_is_none_is_refused(
    method, smoothness, convexity, said
):
    with pytest.raises(ValueError, match=said):
        optimizers.momentum_constants(
            method, smoothness=smoothness, convexity=convexity
        )


def test_parameters_of_another_tree_have_no_point_to_report():
    state = optimizers.triple_momentum(0.1).init({"up": {"kernel": jnp.ones(2)}})
    with pytest.raises(
        ValueError, match="has momentum for 'up/kernel', the parameters"
    ):
        optimizers.triple_momentum_eval_params(state, {"kernel": jnp.ones(2)})


def test_a_state_without_one_rate_has_no_point_to_report():
    w = {"a": jnp.ones(2)}
    core = optimizers.scale_by_triple_momentum()
    rates = {"g": schedules.constant(0.1)}
    groups = schedules.per_group(rates, lambda tree: dict.fromkeys(tree, "g"))
    twice = optax.chain(*(optimizers.triple_momentum(0.1) for _ in range(2)))
    for tx, said in (
        (optax.adam(0.1), "found 0 with 0 rates"),
        (core, "found 0 with 0 rates"),
        (optax.chain(core), "found 1 with 0 rates"),
        (twice, "found 2 with 2 rates"),
        (make((groups, 0.5, 0.0, 1.0)), "one rate for all leaves, found 1 with 1"),
    ):
        with pytest.raises(ValueError, match=said):
            optimizers.triple_momentum_eval_params(tx.init(w), w)
