"""Hypergradients: closed forms, series, warm starts, residuals, meshes, bad input."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import estimators

RANDOM = np.random.default_rng(0)
A, AV = RANDOM.normal(size=(2, 30, 5))
B, BV = RANDOM.normal(size=(2, 30))
T = 0.3  # logarithm of the strength of the decay


def ridge(t):
    """Returns optimum, loss on held-out rows and its derivative, on paper."""
    hessian = A.T @ A + np.exp(t) * np.eye(5)
    w = np.linalg.solve(hessian, A.T @ B)
    moved = -np.exp(t) * np.linalg.solve(hessian, w)
    r = AV @ w - BV
    return w, r @ r / 2, r @ AV @ moved


def upper(t, w):
    return jnp.sum((AV.astype(w.dtype) @ w - BV.astype(w.dtype)) ** 2) / 2


def lower(t, w):
    fit = jnp.sum((A.astype(w.dtype) @ w - B.astype(w.dtype)) ** 2) / 2
    return fit + jnp.exp(t) * jnp.sum(w**2) / 2


HESSIAN = A.T @ A + np.exp(T) * np.eye(5)
Q = np.linalg.solve(HESSIAN, AV.T @ (AV @ ridge(T)[0] - BV))
LARGEST = np.linalg.eigvalsh(HESSIAN)[-1]


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def ridge_estimate(t, w, **how):
    return estimators.implicit_hypergradient(upper, lower, t, w, **how)


def in_float64(function, *arguments, **how):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*arguments, **how))


def test_of_ridge_regression_it_is_the_closed_form_and_the_difference_of_two_optima():
    w, value, wanted = ridge(T)
    found = in_float64(ridge_estimate, T, w, tol=1e-13)
    difference = (ridge(T + 1e-5)[1] - ridge(T - 1e-5)[1]) / 2e-5
    np.testing.assert_allclose(found.grads, wanted, rtol=1e-12)
    np.testing.assert_allclose(found.grads, difference, rtol=1e-8)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    np.testing.assert_allclose(found.solution, Q, rtol=1e-11)
    # As many products as there are eigenvalues.
    assert found.steps == 5 and found.residual < 1e-13


def test_in_float32_it_is_as_good_as_the_tolerance_and_a_solution_is_not_solved_again():
    t, w = jnp.float32(T), jnp.float32(ridge(T)[0])
    found = ridge_estimate(t, w, tol=1e-5, start=jnp.zeros(5))
    assert found.grads.dtype == jnp.float32 and found.residual < 1e-5
    np.testing.assert_allclose(found.grads, ridge(T)[2], rtol=1e-4)
    again = ridge_estimate(t, w, tol=1e-5, start=found.solution)
    assert again.steps == 0 and again.residual < 1e-5
    np.testing.assert_allclose(again.solution, found.solution, rtol=1e-6)


def test_it_is_the_derivative_of_five_hundred_steps_of_descent():
    def trained(t):
        def step(w, _):
            return w - jax.grad(lower, 1)(t, w) / LARGEST, None

        return jax.lax.scan(step, jnp.zeros(5), length=500)[0]

    unrolled = in_float64(jax.jit(jax.grad(lambda t: upper(t, trained(t)))), T)
    found = in_float64(ridge_estimate, T, ridge(T)[0], tol=1e-13)
    np.testing.assert_allclose(found.grads, unrolled, rtol=1e-4)


def test_the_error_of_a_series_falls_as_its_eigenvalues_say():
    """Of K terms it is (I - a H)^K q; 80 are as good as solved."""
    w, _, wanted = ridge(T)
    rate, errors, terms = 1 / LARGEST, [], (5, 20, 80)

    @jax.jit
    def all_of_them(t, w):
        how = {"method": "neumann", "rate": rate}
        return [ridge_estimate(t, w, steps=steps, **how) for steps in terms]

    for steps, found in zip(terms, in_float64(all_of_them, T, w), strict=True):
        left = np.linalg.matrix_power(np.eye(5) - rate * HESSIAN, steps - 1) @ Q
        residual = np.linalg.norm(HESSIAN @ left) / np.linalg.norm(HESSIAN @ Q)
        np.testing.assert_allclose(found.residual, residual, 1e-6, 1e-12)
        left = left - rate * HESSIAN @ left
        np.testing.assert_allclose(found.solution, Q - left, rtol=1e-9)
        errors.append(abs(found.grads / wanted - 1))
    assert 0.02 < errors[0] < 0.2 and 1e-5 < errors[1] < 1e-2 and errors[2] < 1e-7


def test_two_thousand_warm_steps_one_at_a_time_solve_the_system():
    """The recursion for z, z <- z - 0.1 (H z - v), with a fixed optimum."""
    scale = 10 / LARGEST  # the rate 0.1 is below 2 / (largest eigenvalue)

    def call(z, w):
        found = estimators.implicit_hypergradient(
            lambda t, w: scale * upper(t, w),
            lambda t, w: scale * lower(t, w),
            jnp.float32(T),
            w,
            method="neumann",
            steps=1,
            rate=0.1,
            start=z,
        )
        return found.solution, (found.residual, found.steps)

    w = jnp.float32(np.tile(ridge(T)[0], (2000, 1)))
    z, (residuals, steps) = jax.jit(lambda w: jax.lax.scan(call, jnp.zeros(5), w))(w)
    assert np.linalg.norm(z - Q) / np.linalg.norm(Q) < 1e-3
    assert abs(residuals[0] - 1) < 1e-6 and residuals[-1] < 1e-5 and steps[0] == 1


def test_each_step_of_a_series_has_its_own_batch():
    rows = RANDOM.normal(size=(3, 4, 2)).astype(np.float32)
    found = jax.jit(
        lambda rows: estimators.implicit_hypergradient(
            lambda x, y: jnp.sum(y),
            lambda x, y, rows: jnp.sum((rows @ y) ** 2) / 2 + x @ y,
            jnp.ones(2),
            jnp.ones(2),
            method="neumann",
            steps=3,
            rate=0.1,
            damping=0.5,
            batches=rows,
        )
    )(rows)
    q = np.zeros(2)
    for batch in rows:
        q = q + 0.1 * (1 - (batch.T @ batch + 0.5 * np.eye(2)) @ q)
    np.testing.assert_allclose(found.solution, q, rtol=1e-5)
    np.testing.assert_allclose(found.grads, -q, rtol=1e-5)


DIAGONAL = {"a": jnp.array([1.0, 3.0]), "b": jnp.array([[2.0], [0.5]])}


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def solved(diagonal, v, *, damping=0.0, **how):
    def product(x):
        return jax.tree.map(jnp.multiply, diagonal, x)

    return estimators.inverse_product(product, v, damping=damping, **how)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_trees_are_solved_whatever_the_size_of_the_vector(size):
    v = jax.tree.map(lambda d: jnp.full_like(d, size), DIAGONAL)
    found = solved(DIAGONAL, v, damping=1.0)
    jax.tree.map(
        lambda q, d: np.testing.assert_allclose(q / size, 1 / (d + 1), rtol=1e-4),
        found.value,
        DIAGONAL,
    )
    assert found.residual < 1e-5 and found.steps == 4


def test_what_is_not_solved_says_so():
    ones = jax.tree.map(jnp.ones_like, DIAGONAL)
    zero = jax.tree.map(jnp.zeros_like, DIAGONAL)
    nan = jax.tree.map(lambda x: x * jnp.nan, ones)
    turned = {**DIAGONAL, "a": jnp.array([1.0, -3.0])}
    few = solved(DIAGONAL, ones, steps=2)
    assert few.residual > 1e-3 and few.steps == 2
    bent = solved(turned, ones)
    assert bent.residual > 1e-3 and bent.steps < 100
    wild = solved(DIAGONAL, ones, method="neumann", steps=20, rate=1.0)
    assert wild.residual > 1
    assert np.isnan(solved(DIAGONAL, nan).residual)
    still = solved(DIAGONAL, zero)
    assert still.residual == 0 and still.steps == 0
    jax.tree.map(lambda q: np.testing.assert_array_equal(q, 0), still.value)


def decays(x, params):
    return sum(
        jnp.sum(jnp.exp(x[name]) * jnp.mean(jnp.square(w))) / 2
        for name, w in params.items()
    )


def fit(params, rows):
    inputs, wanted = rows
    return jnp.mean((inputs @ params["kernel"] + params["bias"] - wanted) ** 2)


WAVE = np.sin(np.arange(16 * 12, dtype=np.float32)).reshape(16, 12)
ROWS, HELD = (WAVE[:, :8], WAVE[:, 8:]), (WAVE[::-1, 4:], WAVE[:, :4])
PARAMS = {"kernel": WAVE[:8, :4] / 4, "bias": WAVE[8, :4]}
HYPER = {"kernel": jnp.array(1.0), "bias": jnp.array(0.5)}


@jax.jit
def of_a_layer(x, params, rows, held):
    return estimators.implicit_hypergradient(
        lambda x, w: fit(w, held), lambda x, w: fit(w, rows) + decays(x, w), x, params
    )


@pytest.fixture(scope="module")
def on_one_device():
    return jax.block_until_ready(of_a_layer(HYPER, PARAMS, ROWS, HELD))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_it_is_that_of_one_device(axis_type, on_one_device):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)

    def put(tree, *spec):
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda x: jax.device_put(x, place), tree)

    params = {
        "kernel": put(PARAMS["kernel"], None, "model"),
        "bias": put(PARAMS["bias"], "model"),
    }
    with jax.set_mesh(mesh):
        rows, held = put(ROWS, "data"), put(HELD, "data")
        found = jax.block_until_ready(of_a_layer(put(HYPER), params, rows, held))
    assert found.residual < 1e-5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (found.grads, found.solution),
        (on_one_device.grads, on_one_device.solution),
    )
    place = found.solution["kernel"].sharding
    assert place.is_equivalent_to(params["kernel"].sharding, 2)


def test_half_precision_is_widened_and_hyperparameters_keep_their_dtype():
    x, params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (HYPER, PARAMS))
    found = jax.eval_shape(of_a_layer, x, params, ROWS, HELD)
    assert found.grads["kernel"].dtype == jnp.bfloat16
    assert found.solution["kernel"].dtype == found.value.dtype == jnp.float32


# A minimum where the upper loss pulls mostly along what is bent by 2 and 5.
BENT, POINT = np.array([1.0, 2.0, 5.0]), np.array([1.0, -2.0, 3.0])
PULL = BENT * np.array([0.14, 0.75, 0.646])


def above(x, y):
    return jnp.sum((y - (POINT / BENT - PULL)) ** 2) / 2


def below(x, y):
    return jnp.sum(BENT * y**2) / 2 - x @ y


def test_the_error_of_penalties_is_proportional_to_sigma():
    """The published errors 4.0e-2, 4.1e-3, 4.2e-4, 4.2e-5, and slope 1."""
    exact, errors, sigmas = PULL / BENT, [], 10.0 ** -np.arange(1, 5)
    goal = POINT / BENT - PULL
    estimate = jax.jit(functools.partial(penalty, above, below))
    for sigma in sigmas:
        y = (sigma * goal + POINT) / (sigma + BENT)
        found = in_float64(estimate, POINT, y, POINT / BENT, sigma)
        np.testing.assert_allclose(found, PULL / (BENT + sigma), rtol=1e-9)
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    np.testing.assert_allclose(errors, [4.0e-2, 4.1e-3, 4.2e-4, 4.2e-5], rtol=0.03)
    slope = np.polyfit(np.log(sigmas), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.05


penalty = estimators.penalty_hypergradient


def test_two_batches_in_the_difference_bring_noise_that_sigma_makes_larger():
    """One batch in both terms: the noise cancels, as it must."""
    sigma, size = np.float32(1e-2), np.float32(0.1)
    x, goal = np.float32(POINT), np.float32(POINT / BENT - PULL)
    y, z = (sigma * goal + x) / (sigma + BENT), x / BENT

    def noisy(x, y_and_noise):
        y, noise = y_and_noise
        return below(x, y) + noise @ x

    @jax.jit
    def estimate(first, second):
        def free(x, pair):
            return jnp.sum((pair[0] - goal) ** 2) / 2

        near, far = (jnp.float32(y), first), (jnp.float32(z), second)
        return penalty(free, noisy, x, near, far, sigma)

    noise = np.float32(size * RANDOM.normal(size=(2, 200, 3)))
    one = [estimate(a, a) for a in noise[0]]
    two = [estimate(a, b) for a, b in zip(*noise, strict=True)]
    assert np.std(one, 0).max() < 1e-4
    np.testing.assert_allclose(np.std(two, 0), 2**0.5 * size / sigma, rtol=0.2)


def ridge_with(**how):
    w = jnp.ones(5)
    return estimators.implicit_hypergradient(upper, lower, 0.0, w, **how)


def penalized(**how):
    how = {"hyper": 0.0, "params": jnp.ones(5), "reference": jnp.ones(5), **how}
    how = {"upper": upper, "lower": lower, "sigma": 0.1, **how}
    return penalty(**how)


BAD = {
    "method must be one of ('cg', 'neumann'), got 'sgd'": (
        functools.partial(ridge_with, method="sgd"),
        ValueError,
    ),
    "steps must be 1 or more, got 0": (
        functools.partial(ridge_with, steps=0),
        ValueError,
    ),
    "tol must be 0 or more, got -1": (
        functools.partial(ridge_with, tol=-1),
        ValueError,
    ),
    "damping must be 0 or more, got -0.1": (
        functools.partial(ridge_with, damping=-0.1),
        ValueError,
    ),
    "method='neumann' needs a rate": (
        functools.partial(ridge_with, method="neumann"),
        ValueError,
    ),
    "rate must be above 0, got 0": (
        functools.partial(ridge_with, method="neumann", rate=0),
        ValueError,
    ),
    "rate is for method='neumann'": (
        functools.partial(ridge_with, rate=0.1),
        ValueError,
    ),
    "start must have the shapes of vector, (5,), got (4,)": (
        functools.partial(ridge_with, start=jnp.ones(4)),
        ValueError,
    ),
    "implicit_hypergradient: leaf 'w' is int32": (
        lambda: estimators.implicit_hypergradient(
            upper, lower, 0.0, {"w": jnp.arange(5)}
        ),
        TypeError,
    ),
    "implicit_hypergradient: the loss must be one number": (
        lambda: estimators.implicit_hypergradient(
            lambda t, w: w, lower, 0.0, jnp.ones(5)
        ),
        TypeError,
    ),
    "batches must have one for each of the 2 steps": (
        lambda: estimators.inverse_product(
            lambda v, b: v,
            jnp.ones(2),
            method="neumann",
            rate=0.1,
            steps=2,
            batches=jnp.ones(3),
        ),
        ValueError,
    ),
    "penalty_hypergradient: sigma must be above 0, got 0": (
        functools.partial(penalized, sigma=0),
        ValueError,
    ),
    "penalty_hypergradient: sigma=1e-09 is below the resolution of float32": (
        functools.partial(penalized, sigma=1e-9),
        ValueError,
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    call, error = BAD[message]
    with pytest.raises(error, match=re.escape(message)):
        jax.eval_shape(call)
