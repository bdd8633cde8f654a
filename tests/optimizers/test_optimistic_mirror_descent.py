"""Optimistic mirror descent: plays by hand, games, probabilities and bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers, schedules
from tests.optimizers import trajectories

make = optimizers.optimistic_mirror_descent


def box(tree):
    return optax.projections.projection_box(tree, -0.25, 0.5)


def normalized(x):
    return x / x.sum(-1, keepdims=True)


def plays(tx, x, gradient, steps):
    """The plays x_1, x_2, ... of a player who sees the gradient at each."""
    state, found = tx.init(x), [x]
    for _ in range(steps):
        updates, state = tx.update(gradient(x), state, x)
        x = x + updates
        found.append(x)
    return found, state


def test_the_first_plays_by_hand_and_those_of_optax():
    with jax.enable_x64(True):
        start = jnp.zeros(())
        got, _ = plays(make(0.1), start, lambda x: x - 1, 3)
        np.testing.assert_allclose(got, [0, 0.2, 0.26, 0.328], rtol=1e-8)
        theirs = optax.optimistic_gradient_descent(0.1)
        got, _ = plays(theirs, start, lambda x: x - 1, 3)
        np.testing.assert_allclose(got, [0, 0.1, 0.18, 0.254], rtol=1e-8)


@pytest.mark.parametrize(
    ("tx", "norm"),
    [
        (make(0.1), 0.5203),
        (optax.optimistic_gradient_descent(0.1), 0.5176),
        (optax.sgd(0.1), 3.825),
    ],
    ids=["ours", "optax", "plain"],
)
def test_two_players_of_a_product_spiral_in_where_plain_descent_goes_out(tx, norm):
    def body(carry, _):
        (x, y), state = carry
        updates, state = tx.update((y, -x), state, (x, y))
        return (optax.apply_updates((x, y), updates), state), None

    with jax.enable_x64(True):
        start = (jnp.ones(()), jnp.ones(()))
        run = jax.jit(lambda s: jax.lax.scan(body, (s, tx.init(s)), length=200)[0][0])
        assert np.linalg.norm(run(start)) == pytest.approx(norm, abs=5e-5 * norm / 0.5)


def test_probabilities_by_hand():
    with jax.enable_x64(True):
        x = jnp.full(3, 1 / 3)
        tx = make(0.5, mirror="entropic")
        updates, state = tx.update(jnp.array([1.0, 0.0, 0.0]), tx.init(x), x)
        np.testing.assert_allclose(
            jnp.exp(state.secondary), [0.2326965, 0.3836517, 0.3836517], atol=5e-8
        )
        np.testing.assert_allclose(
            x + updates, [0.1553624, 0.4223188, 0.4223188], atol=5e-8
        )


def literal(mirror, projection, eta, x, gradient, steps):
    """Both lines of the method as they stand, in NumPy."""
    project = np.array if projection is None else projection

    def argmin(step, near):
        if mirror == "entropic":
            return normalized(near * np.exp(-step))
        return np.asarray(project(near - step))

    secondary, last, found = x, np.zeros_like(x), []
    for t in range(steps):
        # The first play is where the parameters are.
        x = argmin(eta(t) * last, secondary)
        found.append(x)
        last = gradient(x)
        secondary = argmin(eta(t) * last, secondary)
    return found


@pytest.mark.parametrize(
    ("mirror", "projection"),
    [("euclidean", None), ("euclidean", box), ("entropic", None)],
    ids=["free", "in a box", "entropic"],
)
def test_a_schedule_is_asked_for_the_step_and_for_the_one_to_come(mirror, projection):
    random = np.random.default_rng(0)
    curve, push = random.normal(size=(4, 4)), random.normal(size=4)
    start = np.abs(0.3 * random.normal(size=(2, 4)))
    start = normalized(start) if mirror == "entropic" else start

    def gradient(x):
        return x @ curve + push

    rates = [0.3, 0.1, 0.5, 0.2, 0.4, 0.1]
    with jax.enable_x64(True):
        tx = make(schedules.table(rates), mirror=mirror, projection=projection)
        got, state = plays(tx, jnp.asarray(start), gradient, 5)
        want = literal(mirror, projection, rates.__getitem__, start, gradient, 6)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
        assert (int(state.rate.count), float(state.rate.learning_rate)) == (5, 0.4)


def test_without_a_bound_the_secondary_iterate_drops_out():
    grads = trajectories.gradients((2, 3), steps=5)
    rate, w = schedules.linear(0.5, total_steps=8), jnp.ones((2, 3))
    free, _ = trajectories.parameters(make(rate), w, grads)
    kept = make(rate, projection=lambda tree: tree)
    kept, _ = trajectories.parameters(kept, w, grads)
    np.testing.assert_allclose(free, kept, rtol=1e-5, atol=1e-5)


def test_a_bound_keeps_no_memory_of_what_was_beyond_it():
    # Pushed against the upper bound for long; the first push back is felt in full.
    pushes = [jnp.array(-1.0)] * 20 + [jnp.array(1.0)]
    got, state = trajectories.parameters(
        make(0.125, projection=box), jnp.array(0.0), pushes
    )
    np.testing.assert_array_equal(got[2:-1], [0.5] * 18)
    assert (float(state.secondary), float(got[-1])) == (0.375, 0.25)


def test_a_ball_holds_the_whole_tree():
    target = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    w = jax.tree.map(jnp.zeros_like, target)
    tx = make(0.5, projection=optax.projections.projection_l2_ball)
    state = tx.init(w)
    for _ in range(8):
        grads = jax.tree.map(jnp.subtract, w, target)
        updates, state = tx.update(grads, state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose([w["a"][0], w["b"][0, 0]], [0.6, 0.8], rtol=1e-6)


def test_probabilities_stay_so_for_a_thousand_steps_of_float32():
    tx = make(0.5, mirror="entropic", axis=0)
    start = jnp.asarray(np.random.default_rng(0).random((5, 3)), jnp.float32)
    start = start / start.sum(0)

    def body(carry, key):
        x, state = carry
        push = jax.random.normal(key, x.shape) + jnp.arange(3.0)
        updates, state = tx.update(push, state, x)
        x = x + updates
        return (x, state), (jnp.min(x), jnp.abs(x.sum(0) - 1).max())

    keys = jax.random.split(jax.random.key(0), 1000)
    run = jax.jit(lambda x: jax.lax.scan(body, (x, tx.init(x)), keys)[1])
    least, off = run(start)
    assert least.min() >= 0
    assert off.max() < 1e-6


def test_what_has_become_too_small_to_write_down_comes_back():
    pushes = [jnp.array([40.0, 0.0])] * 3 + [jnp.array([-50.0, 0.0])] * 3
    tx, start = make(1.0, mirror="entropic"), jnp.full(2, 0.5)
    got, _ = trajectories.parameters(tx, start, pushes, compiled=True)
    assert got[2][0] == 0
    np.testing.assert_allclose(got[-1], [1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("start", "want"),
    [
        ([0.0, 0.5, 0.5], [0.0, 0.5, 0.5]),
        ([-3.0, 1.0, 3.0], [0.0, 0.25, 0.75]),
        ([0.0, 0.0, 0.0], [1 / 3] * 3),
        ([-1.0, 0.0, -1.0], [1 / 3] * 3),
    ],
    ids=str,
)
def test_a_start_off_the_simplex_is_brought_to_it(start, want):
    tx, x = make(0.5, mirror="entropic"), jnp.array(start)
    updates, state = tx.update(jnp.zeros(3), tx.init(x), x)
    np.testing.assert_allclose(x + updates, want, rtol=1e-6)
    # Neither a huge gradient nor a tiny one takes it off again.
    for size in (1e30, 1e-30):
        updates, _ = tx.update(size * jnp.array([1.0, 0.0, -1.0]), state, x)
        moved = x + updates
        assert (moved >= 0).all()
        np.testing.assert_allclose(moved.sum(), 1, rtol=1e-6)


def test_empty_leaves_and_half_precision():
    tx = make(0.5, mirror="entropic")
    w = {"a": jnp.full((2, 2), 0.5, jnp.bfloat16), "b": jnp.ones((4, 0))}
    w["c"] = jnp.ones((0, 4))
    updates, state = jax.eval_shape(tx.update, w, tx.init(w), w)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
        lambda x: (x.shape, x.dtype), w
    )
    assert state.secondary["a"].dtype == jnp.float32


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["ex", "auto"])
@pytest.mark.parametrize("settings", [{"mirror": "entropic"}, {"projection": box}])
def test_on_a_mesh_the_plays_are_those_of_one_device(settings, kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    where = NamedSharding(mesh, PartitionSpec("x", "y"))
    grads = trajectories.gradients((8, 4), steps=2)
    tx, start = make(0.1, **settings), jnp.full((8, 4), 0.25, jnp.float32)
    want, _ = trajectories.parameters(tx, start, grads)
    with jax.set_mesh(mesh):
        w, update = jax.device_put(start, where), jax.jit(tx.update)
        state, got = tx.init(w), []
        for g in grads:
            placed = jax.device_put(g, where)
            updates, state = jax.block_until_ready(update(placed, state, w))
            w = w + updates
            got.append(w)
        for x in (updates, state.secondary):
            assert x.sharding.is_equivalent_to(where, 2)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "settings",
    [{}, {"projection": box}, {"mirror": "entropic"}],
    ids=["free", "in a box", "entropic"],
)
def test_four_bytes_a_parameter(settings):
    got = trajectories.state_bytes(make(0.1, **settings), jnp.ones((64, 64)))
    assert got == 4 * 64**2


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"mirror": "l1"}, ValueError, r"must be one of \('euclidean', .*got 'l1'"),
        ({"projection": 1.0}, TypeError, r"a function from tree to tree.*got 1\.0"),
        (
            {"mirror": "entropic", "projection": box},
            ValueError,
            "stays on the simplex by itself; leave projection out",
        ),
    ],
    ids=["mirror", "projection", "both"],
)
def test_what_makes_no_sense_is_refused_by_name(settings, error, said):
    with pytest.raises(error, match=f"optimistic_mirror_descent: .*{said}"):
        make(0.1, **settings)


def test_a_leaf_without_the_axis_and_missing_parameters_are_named():
    tree = {"mix": {"weights": jnp.ones(3)}, "scale": jnp.ones(())}
    said = r"leaf 'scale' has shape \(\) and no axis -1; give the axis"
    with pytest.raises(ValueError, match=said):
        make(0.1, mirror="entropic").init(tree)
    with pytest.raises(ValueError, match=r"leaf 'mix/weights' .* no axis 1"):
        make(0.1, mirror="entropic", axis=1).init(tree)
    for settings in ({"mirror": "entropic"}, {"projection": box}):
        tx, w = make(0.1, **settings), jnp.ones(3)
        with pytest.raises(TypeError, match=r"needs the parameters: update\(\.\.\., p"):
            tx.update(w, tx.init(w))
