"""The edge of stability: thresholds, and a run's sharpness kept beside them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optlab import optimizers, probes, schedules
from optlab.lab import flax_step
from tests.lab import toy
from tests.probes import net
from tests.sharding import on_mesh

RATE, STEPS = 0.05, 12
CURVATURES = jnp.array([1.0, 10.0])


def parabola(w):
    return jnp.sum(CURVATURES * w**2) / 2


def run(tx, loss, params, steps):
    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state))
    return params, state


def whole(params):
    return net.loss(params, net.WHOLE)


def record(rate=RATE, **settings):
    settings = {"length": 20, "every": 3, **settings}
    return probes.record_curvature(rate, net.KEY, **settings)


@functools.cache
def watched():
    """A run on the net whose curvature is recorded, and one without the record."""
    tx = optax.chain(record(steps=6, draws=4), optimizers.sgd(RATE))
    params, state = run(tx, whole, net.PARAMS, STEPS)
    plain, _ = run(optimizers.sgd(RATE), whole, net.PARAMS, STEPS)
    return params, probes.curvature_history(state), plain


@pytest.mark.parametrize("dampened", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("b", [0.0, 0.5, 0.9])
def test_at_the_threshold_steps_begin_to_grow(b, nesterov, dampened):
    edge = probes.stability_threshold(
        0.1, momentum=b, nesterov=nesterov, dampened=dampened
    )
    factor = 1 - b if dampened else 1

    def growth(curvature):
        """Largest root of the map (x, m) -> next (x, m), gradients curvature x."""
        ahead = b if nesterov else 1.0
        drift = 1.0 if nesterov else 0.0
        m = np.array([factor * curvature, b])
        u = ahead * m + drift * np.array([factor * curvature, 0])
        matrix = np.stack([[1, 0] - 0.1 * u, m])
        return np.max(np.abs(np.linalg.eigvals(matrix)))

    edge = float(edge)
    np.testing.assert_allclose(growth(edge), 1, rtol=1e-5)
    assert growth(0.99 * edge) < 1 < growth(1.01 * edge)


def test_the_thresholds_that_people_know():
    threshold = probes.stability_threshold
    np.testing.assert_allclose(threshold(0.1), 20)
    np.testing.assert_allclose(threshold(1.0, momentum=0.9, dampened=True), 38, 1e-6)
    assert threshold(0.0) == np.inf
    traced = jax.jit(lambda rate: threshold(rate, momentum=0.5))
    np.testing.assert_allclose(traced(0.1), 30, rtol=1e-6)


def test_the_record_has_the_sharpness_of_every_measurement():
    _, found, _ = watched()
    np.testing.assert_array_equal(found.step, [0, 3, 6, 9])
    np.testing.assert_allclose(found.edge, 2 / RATE)
    dense = jax.jit(jax.hessian(lambda w: whole(net.like(w))))
    params = net.PARAMS
    for i, step in enumerate(found.step):
        params, _ = run(optimizers.sgd(RATE), whole, net.PARAMS, int(step))
        exact = np.asarray(dense(net.flat(params)))
        # The first one has no direction to begin from.
        rtol = 0.03 if i == 0 else 1e-3
        np.testing.assert_allclose(
            found.sharpness[i], np.linalg.eigvalsh(exact)[-1], rtol=rtol
        )
        assert abs(found.trace[i] - np.trace(exact)) < 5 * found.trace_error[i]


def test_training_with_the_record_is_training_without():
    watched_params, _, plain = watched()
    jax.tree.map(np.testing.assert_array_equal, watched_params, plain)


def test_a_sharper_direction_that_appears_is_found():
    """At first the other direction is the sharp one, and the record's is exact."""

    def loss(w):
        return parabola(w) * (w[0] > 3) + parabola(w[::-1]) * (w[0] <= 3)

    _, state = run(
        optax.chain(record(every=1), optax.scale_by_learning_rate(0.05)),
        loss,
        jnp.array([4.0, 4.0]),
        9,
    )
    np.testing.assert_allclose(probes.curvature_history(state).sharpness, 10, rtol=1e-4)


def test_the_rate_in_force_sets_the_edge_and_the_latest_are_kept():
    rate = schedules.linear(0.1, total_steps=10)
    tx = optax.chain(record(rate, length=3, every=2), optimizers.sgd(rate))
    _, state = run(tx, parabola, jnp.ones(2), 9)
    found = probes.curvature_history(state)
    np.testing.assert_array_equal(found.step, [4, 6, 8])
    np.testing.assert_allclose(found.edge, [2 / rate(t) for t in (4, 6, 8)], rtol=1e-5)
    np.testing.assert_allclose(found.sharpness, 10, rtol=1e-5)
    assert np.all(np.isnan(found.trace))


def test_a_loss_that_is_no_number_is_not_remembered():
    tx = record(every=1)
    w = jnp.ones(2)
    _, state = tx.update(w, tx.init(w), w, loss_fn=lambda w: jnp.nan * jnp.sum(w**2))
    assert np.isnan(probes.curvature_history(state).sharpness)
    _, state = tx.update(w, state, w, loss_fn=parabola)
    np.testing.assert_allclose(
        probes.curvature_history(state).sharpness, [np.nan, 10], rtol=1e-5
    )


def test_the_step_of_flax_gives_what_the_record_needs():
    model = toy.WORKLOAD.make_model(0)
    tx = optax.chain(record(every=1, steps=10), optimizers.sgd(RATE))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    batch = toy.WORKLOAD.batch(0, 0)
    graphdef, params = nnx.split(model)
    flat, back = jax.flatten_util.ravel_pytree(params)

    def loss(w):
        return toy.loss(nnx.merge(graphdef, back(w)), batch)[0]

    wanted = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat))[-1]
    nnx.jit(flax_step.train_step, static_argnums=3)(model, optimizer, batch, toy.loss)
    found = probes.curvature_history(optimizer.opt_state)
    np.testing.assert_allclose(found.sharpness, wanted, rtol=0.01)


@pytest.mark.slow
@on_mesh.BOTH
def test_on_a_mesh_the_record_is_that_of_one_device(axis_type):
    def loss(params):
        waves = [jnp.sum(jnp.sin(x) ** 2) for x in jax.tree.leaves(params)]
        return jnp.sum(jnp.stack(waves) ** 2) / 10

    tx = optax.chain(record(every=2, draws=2), optimizers.sgd(0.01))

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss)
        return optax.apply_updates(params, updates), state

    def walk(params):
        state = jax.jit(tx.init)(params)
        for _ in range(3):
            params, state = jax.block_until_ready(step(params, state))
        return state, params

    mesh = on_mesh.mesh_of(axis_type)
    kinds = {name: on_mesh.KINDS[name] for name in ("dense", "bias", "temperature")}
    params = on_mesh.tree_of(mesh, kinds)
    alone = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    wanted, _ = walk(alone)
    with jax.set_mesh(mesh):
        got, moved = walk(params)
        on_mesh.require_placed(moved, on_mesh.places(params))
        if axis_type == jax.sharding.AxisType.Explicit:
            on_mesh.require_placed(got[0].direction, on_mesh.places(params))
        got = jax.device_get(got)
    for a, b in zip(*map(probes.curvature_history, (got, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"length": 0}, ValueError, "length must be 1 or more, got 0"),
        ({"every": 0}, ValueError, "every must be 1 or more, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer .* got 2.5"),
        ({"draws": 1}, ValueError, "0, for no trace, or 2 or more, got 1"),
        ({"momentum": 1.0}, ValueError, "momentum must be at least 0 and below 1"),
        ({"rate": -0.1}, ValueError, r"learning_rate must be 0 or more, got -0\.1"),
        (
            {"rate": schedules.per_group({"a": 0.1}, {"a": "a"})},
            ValueError,
            "one for all leaves",
        ),
    ],
)
def test_an_argument_without_sense_is_refused(settings, error, said):
    with pytest.raises(error, match=said):
        record(**settings)


def test_an_update_without_a_loss_is_refused():
    w, tx = {"a": jnp.ones(2), "b": jnp.ones(1)}, record()
    with pytest.raises(TypeError, match="record_curvature: an update needs the loss"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(TypeError, match="an update needs the loss and the parameters"):
        tx.update(w, tx.init(w), loss_fn=parabola)
    masked = optax.masked(tx, {"a": True, "b": False})
    with pytest.raises(ValueError, match=r"parameters are hidden by optax\.masked"):
        masked.update(w, masked.init(w), w, loss_fn=parabola)
    with pytest.raises(TypeError, match="typed key"):
        probes.record_curvature(0.1, 0, length=1)


def test_a_state_without_one_link_is_refused():
    w = jnp.ones(2)
    with pytest.raises(ValueError, match="has 0 links record_curvature"):
        probes.curvature_history(optimizers.sgd(0.1).init(w))
    with pytest.raises(ValueError, match="has 2 links record_curvature, at"):
        probes.curvature_history((record().init(w), record().init(w)))
