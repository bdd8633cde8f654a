"""Recorded gradient norms: the right numbers, in order, and training as without."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers, probes, testing

LAST = 2**31 - 1
LENGTH = 5


def gradient(k, dtype="float32"):
    random = np.random.default_rng(k)
    shapes = {"matrix": (16, 8), "vector": (8,), "scalar": (), "empty": (0, 3)}
    return {
        name: jnp.asarray(random.normal(size=shape), dtype)
        for name, shape in shapes.items()
    }


def wanted(kind, tree):
    flat = [np.asarray(x).astype(np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(flat), ord=int(kind[1]))


def run(tx, gradients):
    state = tx.init(gradients[0])
    step = jax.jit(tx.update)
    for g in gradients:
        _, state = step(g, state, g)
    return state


def recorded(learning_rate=0.1, kind="l2"):
    record = probes.record_gradient_norms(kind, length=LENGTH)
    return optax.chain(record, optimizers.sgd(learning_rate, momentum=0.9))


@pytest.fixture(scope="module")
def subject():
    return testing.Subject(recorded)


@pytest.mark.parametrize("promise", testing.PROMISES)
def test_a_chain_with_the_probe_keeps_every_promise(subject, promise):
    report = testing.check(subject, promises=[promise], print=False)
    status = "not applicable" if promise == "follows_reference" else "pass"
    assert [outcome.status for outcome in report] == [status], str(report)


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_norms_are_those_of_all_leaves_together(kind, dtype):
    gradients = [gradient(k, dtype) for k in range(LENGTH)]
    tx = probes.record_gradient_norms(kind, length=LENGTH)
    found = probes.gradient_norms(run(tx, gradients))
    assert (type(found), found.dtype, found.shape) == (
        np.ndarray,
        np.float32,
        (LENGTH,),
    )
    # Sums of 137 numbers in float32, whatever the dtype of the leaves.
    np.testing.assert_allclose(found, [wanted(kind, g) for g in gradients], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_updates_pass_bit_for_bit(dtype):
    tx = probes.record_gradient_norms(length=2)
    g = gradient(0, dtype)
    g["matrix"] = g["matrix"].at[0, :2].set(jnp.array([-0.0, jnp.nan], dtype))
    out, _ = jax.jit(tx.update)(g, tx.init(g))
    for before, after in zip(jax.tree.leaves(g), jax.tree.leaves(out), strict=True):
        assert before.dtype == after.dtype
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
    out, _ = tx.update(g, tx.init(g))
    assert out is g


def test_training_with_the_probe_is_training_without():
    params = gradient(9)
    probe = probes.record_gradient_norms("l1", length=3)
    plain, probed = optimizers.adamw(0.1), optax.chain(probe, optimizers.adamw(0.1))
    ends = []
    for tx in (plain, probed):
        p, state = params, tx.init(params)
        for k in range(4):
            updates, state = jax.jit(tx.update)(gradient(k), state, p)
            p = optax.apply_updates(p, updates)
        ends.append(p)
    chex.assert_trees_all_equal(*ends)


@pytest.mark.parametrize("steps", [0, 1, 4, 5, 6, 13])
def test_a_run_longer_than_the_record_keeps_the_latest_steps_in_order(steps):
    tx = probes.record_gradient_norms("l1", length=LENGTH)
    gradients = [jnp.array([float(k)]) for k in range(steps)]
    state = run(tx, gradients) if steps else tx.init(None)
    assert state.count == steps
    np.testing.assert_array_equal(
        probes.gradient_norms(state), np.arange(max(0, steps - LENGTH), steps)
    )


def test_what_is_read_is_a_copy():
    tx = probes.record_gradient_norms(length=3)
    state = run(tx, [jnp.ones(1)])
    probes.gradient_norms(state)[0] = 7.0
    assert probes.gradient_norms(state) == [1.0]


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_extreme_gradients_have_their_norm(kind, size):
    tx = probes.record_gradient_norms(kind, length=1)
    found = probes.gradient_norms(
        run(tx, [{"a": jnp.full(4, size), "b": jnp.zeros(2)}])
    )
    np.testing.assert_allclose(found, [size * {"l1": 4, "l2": 2}[kind]], rtol=1e-6)


def test_float64_gradients_are_summed_in_float64():
    with jax.enable_x64(True):
        tx = probes.record_gradient_norms("l1", length=1)
        state = run(tx, [jnp.array([1e8, 1.0, -1e8 + 1.0])])
        assert state.norms.dtype == jnp.float32
        assert state.norms[0] == np.float32(2e8)
        tx = probes.record_gradient_norms("l2", length=1)
        assert run(tx, [jnp.array([3e-200, 4e-200])]).norms[0] == 0.0  # float32's zero


def test_a_tree_without_leaves_has_norm_zero():
    for tree in ({}, None, {"a": optax.MaskedNode()}):
        for kind in ("l1", "l2"):
            tx = probes.record_gradient_norms(kind, length=2)
            updates, state = tx.update(tree, tx.init(tree))
            assert updates is tree
            assert probes.gradient_norms(state) == [0.0]


def test_only_unmasked_leaves_count():
    record = probes.record_gradient_norms("l1", length=2)
    tx = optax.masked(record, {"a": True, "b": False})
    state = run(tx, [{"a": jnp.ones(3), "b": jnp.ones(50)}])
    assert probes.gradient_norms(state) == [3.0]


def test_multi_steps_records_the_mean_gradient_of_each_real_step():
    multi = optax.MultiSteps(recorded(kind="l1"), every_k_schedule=3)
    tx = multi.gradient_transformation()
    state = run(tx, [jnp.full(2, float(k)) for k in range(7)])
    np.testing.assert_allclose(probes.gradient_norms(state), [2.0, 8.0], rtol=1e-6)


def test_the_link_is_found_under_wrappers_and_groups():
    gradients = [gradient(k) for k in range(3)]
    numbers = [wanted("l2", g) for g in gradients]
    injected = optax.inject_hyperparams(recorded, static_args="kind")(learning_rate=0.1)
    named = optax.named_chain(("first", recorded()), ("last", optax.scale(1.0)))
    for tx in (injected, named, optax.apply_if_finite(recorded(), 2)):
        found = probes.gradient_norms(run(tx, gradients))
        np.testing.assert_allclose(found, numbers, rtol=1e-6)


def test_the_probe_itself_can_be_injected_with_static_arguments():
    static = ("kind", "length")
    inject = optax.inject_hyperparams(probes.record_gradient_norms, static_args=static)
    state = run(inject(kind="l1", length=4), [jnp.ones(3)])
    assert probes.gradient_norms(state) == [3.0]
    traced = optax.inject_hyperparams(probes.record_gradient_norms)(length=4)
    with pytest.raises(TypeError, match="name it in static_args"):
        jax.jit(traced.init)(jnp.ones(1))


def test_the_state_of_an_nnx_optimizer_is_read():
    model = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, recorded(kind="l1"), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    assert probes.gradient_norms(optimizer.opt_state) == [6.0]


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_on_a_mesh_the_norm_is_global_and_nothing_moves(axis_type, kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    specs = {"matrix": ("x", "y"), "vector": ("y",), "scalar": (), "empty": ()}
    gradients = [gradient(k) for k in range(3)]
    tx = probes.record_gradient_norms(kind, length=2)
    with jax.set_mesh(mesh):
        place = lambda name, x: jax.device_put(  # noqa: E731
            x, NamedSharding(mesh, PartitionSpec(*specs[name]))
        )
        placed = [{name: place(name, g[name]) for name in g} for g in gradients]
        state, step = tx.init(placed[0]), jax.jit(tx.update)
        for g in placed:
            updates, state = step(g, state)
            for name, leaf in g.items():
                assert updates[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
            assert all(x.sharding.is_fully_replicated for x in state)
    np.testing.assert_allclose(
        probes.gradient_norms(state),
        [wanted(kind, g) for g in gradients[1:]],
        rtol=1e-6,
    )


def test_one_compilation_and_a_count_that_stays_at_the_largest_integer():
    tx = probes.record_gradient_norms(length=4)
    traces = []

    @jax.jit
    def step(g, state):
        traces.append(1)
        return tx.update(g, state)

    state = tx.init(None)
    for _ in range(9):
        _, state = step(jnp.ones(1), state)
    assert len(traces) == 1
    _, state = step(jnp.ones(1), state._replace(count=jnp.int32(LAST)))
    assert state.count == LAST


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            {"kind": "l3", "length": 2},
            ValueError,
            "kind must be 'l1' or 'l2', got 'l3'",
        ),
        ({"kind": None, "length": 2}, ValueError, "got None"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"length": -3}, ValueError, "at least 1, got -3"),
        ({"length": 2.5}, TypeError, "must be an integer"),
        ({"length": "10"}, TypeError, "must be an integer"),
        ({}, TypeError, "length"),
    ],
)
def test_an_argument_without_sense_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        probes.record_gradient_norms(**arguments)


def test_a_state_without_one_link_is_refused():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="has 0 links"):
        probes.gradient_norms(optimizers.adamw(0.1).init(params))
    groups = optax.partition({"a": recorded(), "b": recorded()}, {"a": "a", "b": "b"})
    state = run(groups, [params])
    with pytest.raises(ValueError, match=r"has 2 links .*inner_states/a"):
        probes.gradient_norms(state)
    part = probes.gradient_norms(state.inner_states["a"])
    np.testing.assert_allclose(part, [np.sqrt(2)], rtol=1e-6)


def test_the_state_of_several_runs_is_refused_with_a_remedy():
    tx = probes.record_gradient_norms(length=3)
    states = jax.vmap(lambda g: tx.update(g, tx.init(g))[1])(jnp.arange(6.0)[:, None])
    with pytest.raises(ValueError, match="of 6 runs"):
        probes.gradient_norms(states)
    assert probes.gradient_norms(jax.tree.map(lambda x: x[2], states)) == [2.0]
