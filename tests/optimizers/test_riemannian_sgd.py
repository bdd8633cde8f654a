"""Riemannian SGD: worked steps, columns that stay orthonormal, problems solved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import kernels, optimizers, schedules, trees
from tests.optimizers import trajectories

TALL = trees.MatrixView((0,), (1,))
METHODS = [
    ("grassmann", "exp"),
    ("grassmann", "qr"),
    ("grassmann", "polar"),
    ("stiefel", "qr"),
    ("stiefel", "polar"),
]
over_methods = pytest.mark.parametrize(("manifold", "retraction"), METHODS)
riemannian = functools.partial(optimizers.riemannian_sgd, views=TALL)


def orthonormal(n, k, seed=0, stack=()):
    x = np.random.default_rng(seed).normal(size=(*stack, n, k))
    return np.linalg.qr(x)[0]


def off(p):
    """How far the columns are from orthonormal."""
    p = np.asarray(p, np.float64)
    return np.abs(p.swapaxes(-1, -2) @ p - np.eye(p.shape[-1])).max()


def walk(tx, p, gradient, steps):
    """Returns the parameters after some steps, all of them in one program."""

    def step(carry, _):
        p, state = carry
        updates, state = tx.update(gradient(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[0][0])
    return run(p)


@pytest.mark.parametrize(
    ("retraction", "want"),
    [
        ("exp", [0.9210609940, -0.3894183423, 0]),
        ("qr", [0.9284766909, -0.3713906764, 0]),
    ],
)
def test_the_worked_step(retraction, want):
    with jax.enable_x64(True):
        p, g = jnp.eye(3)[:, :1], jnp.array([[0.3], [0.4], [0.0]])
        tx = riemannian(1.0, retraction=retraction)
        updates, _ = tx.update(g, tx.init(p), p)
        np.testing.assert_allclose((p + updates)[:, 0], want, atol=1e-10)


@over_methods
def test_columns_stay_orthonormal_for_a_thousand_steps(manifold, retraction):
    p = jnp.asarray(orthonormal(6, 3, stack=(2,)), jnp.float32)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=p.shape), jnp.float32)
    tx = optimizers.riemannian_sgd(
        0.1,
        views=trees.MatrixView((1,), (2,)),
        manifold=manifold,
        retraction=retraction,
        momentum=0.9,
    )
    # Nothing to converge to: the last steps are as long as the first.
    end = walk(tx, p, lambda p: noise + 3 * jnp.roll(p, 1, axis=1), 1000)
    assert off(end) < 1e-5 and np.abs(end - p).max() > 0.1


@pytest.mark.parametrize("retraction", kernels.RETRACTIONS)
def test_on_grassmann_the_top_eigenspace_is_found(retraction):
    basis = orthonormal(6, 6, seed=2)
    a = jnp.asarray(basis * np.array([5, 4, 3, 1, 0.5, 0]) @ basis.T, jnp.float32)
    p = jnp.asarray(orthonormal(6, 3), jnp.float32)
    tx = riemannian(0.05, retraction=retraction, momentum=0.5)
    # Of -tr(P^T A P) / 2.
    end = np.asarray(walk(tx, p, lambda p: -a @ p, 300), np.float64)
    top = basis[:, :3]
    np.testing.assert_allclose(end @ end.T, top @ top.T, atol=1e-5)


@pytest.mark.parametrize("retraction", ["qr", "polar"])
def test_on_stiefel_the_eigenvectors_themselves_are_found(retraction):
    basis = orthonormal(5, 5, seed=2)
    a = jnp.asarray(basis * np.array([5, 4, 3, 1, 0.0]) @ basis.T, jnp.float32)
    weights = jnp.array([3.0, 2.0])
    p = jnp.asarray(orthonormal(5, 2), jnp.float32)
    tx = riemannian(0.05, manifold="stiefel", retraction=retraction, momentum=0.5)
    # Of -tr(P^T A P N) / 2: only the columns in their order are best, not the subspace.
    end = np.asarray(walk(tx, p, lambda p: -(a @ p) * weights, 400), np.float64)
    np.testing.assert_allclose(np.abs(basis[:, :2].T @ end), np.eye(2), atol=1e-4)


def test_the_momentum_is_ambient_and_is_not_carried_along():
    p = orthonormal(4, 2)
    grads = trajectories.gradients((4, 2), steps=2, dtype=np.float64)
    with jax.enable_x64(True):
        tx = riemannian(0.1, retraction="qr", momentum=0.5, dampening=0.25)
        (_, got), state = trajectories.parameters(tx, jnp.asarray(p), grads)
        momentum = np.asarray(optax.tree.get(state, "momentum"))
    np.testing.assert_allclose(momentum, 0.5 * grads[0] + 0.75 * grads[1])
    for m in (grads[0], momentum):
        q, r = np.linalg.qr(p - 0.1 * (m - p @ (p.T @ m)))
        p = q * np.sign(np.diag(r))
    np.testing.assert_allclose(got, p, atol=1e-13)


def test_rows_are_a_basis_when_the_view_says_so():
    rows = jnp.asarray(orthonormal(5, 2, stack=(3,)).swapaxes(1, 2), jnp.float32)
    g = jnp.asarray(np.random.default_rng(1).normal(size=rows.shape), jnp.float32)
    flat = {"head": rows.reshape(6, 5), "tall": rows[0].T, "heads": rows}
    grads = {"head": g.reshape(6, 5), "tall": g[0].T, "heads": g}
    views = {
        "head": trees.MatrixView((1,), (0,), split=(2, 2, 2)),
        "tall": TALL,
        "heads": trees.MatrixView((2,), (1,)),
    }
    tx = optimizers.riemannian_sgd(0.5, views=views)
    updates, _ = jax.jit(tx.update)(grads, tx.init(flat), flat)
    heads = updates["heads"]
    np.testing.assert_allclose(updates["head"], heads.reshape(6, 5), atol=1e-6)
    np.testing.assert_allclose(updates["tall"], heads[0].T, atol=1e-6)
    assert off((rows + heads).swapaxes(1, 2)) < 1e-6


def test_a_pattern_finds_matrices_and_their_longer_sides_are_the_rows():
    params = {
        "head": {"kernel": jnp.asarray(orthonormal(5, 2), jnp.float32)},
        "wide": {"kernel": jnp.asarray(orthonormal(5, 2).T, jnp.float32)},
        "stack": jnp.asarray(orthonormal(5, 2, stack=(3,)), jnp.float32),
        "other": jnp.ones((4, 2)),
    }
    tx = optimizers.riemannian_sgd(0.1, views="kernel|st", rest=optimizers.sgd(0.5))
    grads = jax.tree.map(lambda p: 0 * p + jnp.arange(5.0)[:, None], params["stack"])
    grads = {**jax.tree.map(jnp.ones_like, params), "stack": grads}
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert off(after["head"]["kernel"]) < 1e-6
    assert off(after["wide"]["kernel"].T) < 1e-6
    assert off(after["stack"]) < 1e-6
    np.testing.assert_array_equal(after["other"], 0.5)
    with pytest.raises(
        ValueError, match=r"leaf 'bias' .*\(2,\), a vector, and 'b|k' f"
    ):
        optimizers.riemannian_sgd(0.1, views="b|k").init({"bias": jnp.ones(2)})


@over_methods
def test_what_is_not_orthonormal_becomes_so_in_the_first_update(manifold, retraction):
    p = jnp.asarray(7 * np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    tx = riemannian(0.1, manifold=manifold, retraction=retraction)
    updates, _ = jax.jit(tx.update)(jnp.ones((6, 3)), tx.init(p), p)
    assert off(p + updates) < 1e-5


def test_exp_is_cleaned_up_every_so_often():
    p = jnp.asarray(orthonormal(6, 3), jnp.float32)
    wrong = p.at[0, 0].add(0.01)
    tx = riemannian(0.1, every=3)
    update = jax.jit(tx.update)
    state = tx.init(p)
    for clean in (True, False, False, True):
        updates, state = update(jnp.ones((6, 3)), state, wrong)
        assert (off(wrong + updates) < 1e-5) == clean


def test_kernels_run_once_for_each_shape():
    def equations(layers):
        params = {f"layer_{i}": jnp.ones((4, 2)) for i in range(layers)}
        tx = optimizers.riemannian_sgd(0.1, views=dict.fromkeys(params, TALL))
        text = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
        return text.count(" svd["), text.count(" householder_product[")

    assert equations(1) == equations(5) != (0, 0)


def test_other_leaves_go_to_the_rest_and_rates_are_in_the_state():
    params = {"basis": jnp.asarray(orthonormal(4, 2), jnp.float32), "b": jnp.ones(2)}
    views = {"basis": TALL, "b": None}
    rate = schedules.linear(0.5, total_steps=2)
    tx = optimizers.riemannian_sgd(rate, views=views, rest=optimizers.sgd(0.25))
    points, state = trajectories.parameters(
        tx, params, [jax.tree.map(jnp.ones_like, params)] * 2
    )
    np.testing.assert_allclose(points[-1]["b"], 0.5)
    assert off(points[-1]["basis"]) < 1e-6
    assert sorted(trajectories.rates(state)) == [0.25, 0.25]


def test_bfloat16_leaves_as_bfloat16_and_as_orthonormal_as_it_can_be():
    p = jnp.asarray(orthonormal(8, 3), jnp.bfloat16)
    tx = riemannian(0.1)
    points, _ = trajectories.parameters(tx, p, [jnp.ones_like(p)] * 3, compiled=True)
    assert points[-1].dtype == jnp.bfloat16 and off(points[-1]) < 0.02


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"manifold": "sphere"}, r"manifold must be one of .*got 'sphere'"),
        ({"retraction": "cayley"}, r"on grassmann retraction must be .*got 'cayley'"),
        (
            {"manifold": "stiefel", "retraction": "exp"},
            r"on stiefel retraction must be one of \['qr', 'polar'\], got 'exp'",
        ),
        ({"every": 0}, "riemannian_sgd: every must be at least 1, got 0"),
        ({"every": 2.5}, r"every must be at least 1, got 2\.5"),
        ({"momentum": 1.0}, r"riemannian_sgd: momentum must be .*got 1\.0"),
        ({"momentum": 0.9, "dampening": -1.0}, r"dampening must be 0 to 1, got -1\.0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        riemannian(0.1, **settings)


@pytest.mark.parametrize(
    ("leaf", "view", "said"),
    [
        (6, None, r"shape \(6,\) and is no matrix .*rest=optlab"),
        (6, TALL, r"shape \(6,\), which .*Give vectors the view None"),
        ((4, 6), TALL, r"shape \(4, 6\) .*4 rows and 6 columns.*\(\(1,\), \(0,\)\)"),
        ((4, 4), trees.MatrixView((0,), (0,)), r"shape \(4, 4\), which .*not fit"),
    ],
    ids=["no view", "vector", "wide", "one axis twice"],
)
def test_a_leaf_that_has_no_orthonormal_columns_is_named(leaf, view, said):
    params = {"basis": jnp.ones((4, 2)), "other": jnp.ones(leaf)}
    tx = optimizers.riemannian_sgd(0.1, views={"basis": TALL, "other": view})
    with pytest.raises(ValueError, match=f"riemannian_sgd: leaf 'other' has {said}"):
        tx.init(params)


def test_missing_parameters_are_named():
    tx = riemannian(0.1)
    p = jnp.eye(3)[:, :1]
    with pytest.raises(TypeError, match=r"riemannian_sgd: needs the parameters: upd"):
        tx.update(p, tx.init(p))
