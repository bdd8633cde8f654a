"""DoG, L-DoG and DoWG: they start in half precision, never stall, and average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers, schedules
from tests.conformance import references
from tests.optimizers import bowl, trajectories

METHODS = [optimizers.dog, optimizers.ldog, optimizers.dowg]
every_method = pytest.mark.parametrize("make", METHODS, ids=lambda f: f.__name__)
read = optimizers.dog_params

START, ZEROS = trajectories.START, trajectories.ZEROS
tree_gradients = trajectories.tree_gradients
ONE = np.ones(4, np.float32) / 2  # of length 1


def same(got, want, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), got, want)


@every_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_starts_after_a_gradient_of_zero_and_the_distance_never_falls(make, dtype):
    x, state, r = bowl.descend(
        make(gamma=8.0), dtype, watch=lambda s: s.distance[0], zeros=1
    )
    assert bowl.loss(x) < 1e-2 and bowl.loss(read(state, x)) < 1e-2
    # None at first, then the first one.
    np.testing.assert_allclose(r[:2].ravel(), [0, 1e-6 * (1 + 14**0.5)], rtol=1e-6)
    assert (np.diff(r) >= 0).all() and 2 < r[-1] < 12 and r.dtype == "float32"


def test_optax_never_starts_in_bfloat16():
    assert bowl.final_loss(optax.contrib.dog(1.0), jnp.bfloat16) == 7.0


def test_weighted_gradients_let_it_arrive_earlier():
    ends = [bowl.final_loss(make(), steps=100) for make in METHODS]
    # One layer: DoG and L-DoG are one method.
    np.testing.assert_allclose(ends[:2], 1.5e-2, rtol=0.02)
    assert ends[2] < 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_flat_layer_does_not_wait_for_a_steep_one(dtype):
    curvature = {"steep": 1.0, "flat": 1e-4}

    @functools.partial(jax.jit, static_argnums=0)
    def ends(make):
        tx = make(gamma=None)
        x = {name: jnp.full(5, c**-0.5, dtype) for name, c in curvature.items()}

        def step(carry, _):
            x, state = carry
            g = jax.tree.map(lambda c, x: (c * x).astype(x.dtype), curvature, x)
            updates, state = tx.update(g, state, x)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=2000)
        return jax.tree.map(lambda c, x: c * bowl.loss(x), curvature, x)

    layered, whole = ends(optimizers.ldog), ends(optimizers.dog)
    # Both losses start at 2.5.
    assert max(layered.values()) < 1e-6
    # In bfloat16 its steps of 0.01 from 100 are rounded off besides.
    left = 1.93 if dtype == jnp.float32 else 2.5
    assert whole["steep"] < 1e-6 and whole["flat"] == pytest.approx(left, abs=0.02)


@every_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_sum_of_squares_does_not_stall(make, dtype):
    tx, x = make(), jnp.zeros(4, dtype)
    g = jnp.asarray(ONE, dtype)

    @jax.jit
    def run(state):
        state = state._replace(distance=(jnp.ones(state.distance[0].shape),))
        still = lambda _, s: tx.update(g, s, x)[1]._replace(  # noqa: E731
            displacement=s.displacement
        )
        return jax.lax.fori_loop(0, 2000, still, state)

    (length,) = run(tx.init(x)).gradients
    np.testing.assert_allclose(np.square(length), 2000, rtol=1e-4)


def test_optax_s_sum_stalls_at_256_in_bfloat16():
    tx, x = optax.contrib.dog(1.0), jnp.zeros(4, jnp.bfloat16)
    g = jnp.asarray(ONE, jnp.bfloat16)
    start = tx.init(x)
    state = jax.lax.fori_loop(0, 2000, lambda _, s: tx.update(g, s, x)[1], start)
    assert optax.tree.get(state, "sum_sq_norm_grads") == 256


@every_method
def test_a_first_gradient_of_zero_costs_a_step_and_nothing_else(make):
    run = functools.partial(trajectories.parameters, params=START, compiled=True)
    grads = tree_gradients(4)
    want, fresh = run(make(gamma=8.0), grads=grads)
    # Then a gradient at a rate of zero.
    rate = schedules.table([1.0, 0.0, 1.0])
    got, state = run(make(rate, gamma=8.0), grads=[ZEROS, grads[0], *grads])
    same(got[2:], want)
    same(state._replace(rate=None), fresh._replace(rate=None), 1e-5)
    assert (int(state.count), int(state.rate.count)) == (4, 6)


@every_method
def test_the_distance_starts_at_the_point_of_the_first_update(make):
    tx, grads = make(), tree_gradients(3)
    want, _ = trajectories.parameters(tx, START, grads, compiled=True)
    other = tx.init(jax.tree.map(lambda x: 100 * x, START))
    got, _ = trajectories.parameters(tx, START, grads, other, compiled=True)
    same(got, want)


@every_method
def test_what_is_not_finite_is_passed_over(make):
    grads, bad = tree_gradients(3), tree_gradients(1)[0]
    bad = {**bad, "b": np.full(5, np.nan, np.float32)}
    points, state = trajectories.parameters(
        make(initial_distance=0.1), START, [grads[0], bad, *grads[1:]], compiled=True
    )
    np.testing.assert_array_equal(points[1]["b"], points[0]["b"])
    moved = np.abs(points[1]["a"] - points[0]["a"]).max() > 0
    # Layers by themselves go on.
    assert moved == (make is optimizers.ldog)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((points[-1], state)))
    assert int(state.count) == (4 if make is optimizers.ldog else 3)


FORTY = [
    (optimizers.dog, {"weight_decay": 0.1}),
    (optimizers.dog, {"initial_distance": 1e-2, "eps": 1.0, "learning_rate": 0.5}),
    (optimizers.dowg, {"weight_decay": 0.1, "initial_distance": 1e-3}),
    (optimizers.ldog, {"weight_decay": 0.1}),
]


@pytest.mark.parametrize(("make", "settings"), FORTY, ids=range(len(FORTY)))
def test_forty_steps_in_which_the_distance_grows(make, settings):
    with jax.enable_x64(True):
        tx = make(**settings)
        x, points = jnp.array(bowl.START), []
        state, update = tx.init(x), jax.jit(tx.update)
        for _ in range(40):
            updates, state = update(x, state, x)
            x = x + updates
            points.append(np.asarray(x))
        r = float(state.distance[0].reshape(()))
    grads = [{"x": g} for g in (np.array(bowl.START), *points[:-1])]
    known = {"learning_rate": 1.0, **make.__kwdefaults__, **settings}
    want = references.REFERENCES[make.__name__](known)(grads[0], grads)
    # The reference subtracts parameters: 1e-16 in 1e-6.
    np.testing.assert_allclose(points, [p["x"] for p in want], atol=1e-9)
    assert r > 10 * known["initial_distance"]


@every_method
def test_the_average_copies_then_forgets_polynomially(make):
    tx = make(initial_distance=0.1, gamma=3.0)
    points, state = trajectories.parameters(tx, START, tree_gradients(1), compiled=True)
    jax.tree.map(np.testing.assert_array_equal, state.average, points[0])
    points, state = trajectories.parameters(tx, START, tree_gradients(5), compiled=True)
    mean = points[0]
    for t, x in enumerate(points, start=1):
        c = 4 / (t + 3)
        mean = jax.tree.map(lambda y, x, c=c: (1 - c) * y + c * x, mean, x)
    same(read(state, points[-1]), mean, 1e-5)
    # At gamma 0 it is the plain mean.
    points, state = trajectories.parameters(
        make(gamma=0.0), START, tree_gradients(5), compiled=True
    )
    mean = jax.tree.map(lambda *x: np.mean(x, 0), *points)
    same(read(state, points[-1]), mean)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_average_of_what_stays_put_is_that_to_the_bit(dtype):
    tx = optimizers.dog(initial_distance=1e-30)
    x = jnp.asarray(np.random.default_rng(0).normal(size=50), dtype)
    g = [np.ones(50, np.float32)] * 7
    points, state = trajectories.parameters(tx, x, g, compiled=True)
    assert int(state.count) == 7
    for got in (points[-1], read(state, points[-1])):
        np.testing.assert_array_equal(got, x)
        assert got.dtype == dtype


HALF = {"a": True, "b": False}


def inside(tx):
    """The transformation inside others, and whether both leaves are its own."""
    labels = {"a": "one", "b": "two"}
    return {
        "chain": (optax.chain(optax.clip(9.0), tx), True),
        "masked": (optax.masked(tx, HALF), False),
        "partition": (optax.partition({"one": tx, "two": tx}, labels), True),
        "MultiSteps": (optax.MultiSteps(tx, 1).gradient_transformation(), True),
        "injected": (
            optax.inject_hyperparams(optimizers.ldog, ("mask", "views"))(
                1.0, initial_distance=0.1
            ),
            True,
        ),
    }


@pytest.mark.parametrize("where", inside(optax.identity()))
def test_the_average_is_found_wherever_the_state_is(where):
    bare = optimizers.ldog(initial_distance=0.1)
    grads = tree_gradients(3)
    x, state = trajectories.parameters(bare, START, grads, compiled=True)
    want = read(state, x[-1])
    tx, both = inside(bare)[where]
    jax.tree.map(np.testing.assert_array_equal, read(tx.init(START), START), START)
    x, state = trajectories.parameters(tx, START, grads, compiled=True)
    got = jax.jit(read)(state, x[-1])
    assert np.abs(want["a"] - x[-1]["a"]).max() > 0.003
    np.testing.assert_allclose(got["a"], want["a"], rtol=1e-6)
    np.testing.assert_allclose(got["b"], want["b"] if both else x[-1]["b"], rtol=1e-6)


def test_without_an_average_the_parameters_are_returned():
    tx = optimizers.dowg()
    points, state = trajectories.parameters(tx, START, tree_gradients(2), compiled=True)
    same(read(state, points[-1]), points[-1])
    with pytest.raises(ValueError, match="dog_params: there is no DogState in the sta"):
        read(optax.adam(0.1).init(START), START)


def test_a_layer_is_a_matrix_of_a_stack_or_a_vector():
    params = {
        "kernel": np.ones((3, 4, 6)),
        "bias": np.ones((3, 6)),
        "scale": np.ones(6),
    }
    state = optimizers.ldog().init(jax.tree.map(jnp.asarray, params))
    shapes = [x.shape for x in state.distance]
    assert shapes == [(3, 1), (3, 1, 1), (1,)]


@every_method
def test_bytes_of_state(make):
    for gamma, want in ((8.0, 8), (None, 4)):
        state = jax.eval_shape(make(gamma=gamma).init, jnp.ones((64, 64), jnp.bfloat16))
        arrays = [x for x in jax.tree.leaves(state) if x.size > 1]
        assert sum(x.size * x.dtype.itemsize for x in arrays) == want * 64**2


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_meshes_equal_one_device_while_the_distance_grows(kind):
    tx = optimizers.ldog(initial_distance=0.1)
    params = {"kernel": np.ones((8, 16), np.float32)}
    grads = [jax.tree.map(lambda x, t=t: (1 + t) * x, params) for t in range(3)]
    want, state = trajectories.parameters(tx, params, grads, compiled=True)
    average = read(state, want[-1])
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
    place = NamedSharding(mesh, PartitionSpec(None, "devices"))
    with jax.set_mesh(mesh):
        x, *placed = [jax.device_put(tree, place) for tree in (params, *grads)]
        state, update = tx.init(x), jax.jit(tx.update)
        for g in placed:
            updates, state = jax.block_until_ready(update(g, state, x))
            x = optax.apply_updates(x, updates)
        same(x, want[-1])
        same(read(state, x), average)


@every_method
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"initial_distance": 0.0}, r"{}: initial_distance must be above 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"{}: weight_decay must be 0 or more, got -1\.0"),
        ({"gamma": -1.0}, r"{}: gamma must be 0 or more, got -1\.0"),
        (
            {"learning_rate": schedules.per_group({"a": 1.0}, lambda tree: "a")},
            "{}: learning_rate must be one for all leaves, not one a group",
        ),
    ],
    ids=["initial_distance", "weight_decay", "gamma", "learning_rate"],
)
def test_what_makes_no_sense_is_refused_by_name(make, settings, said):
    with pytest.raises(ValueError, match=said.format(make.__name__)):
        make(**settings)


@every_method
def test_missing_parameters_are_named(make):
    tx = make()
    with pytest.raises(TypeError, match=rf"{make.__name__}: needs the parameters: upd"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
