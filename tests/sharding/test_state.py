"""The state of every optimizer gets a placement, and keeps it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from optlab import catalog, optimizers, sharding, testing

P = PartitionSpec
AXES = ("data", "model")
BOTH = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)
KINDS = {
    "dense": ((16, 8), P("data", "model")),
    "same": ((16, 8), P("data", "model")),
    "layers": ((2, 16, 8), P(None, None, "model")),
    "bias": ((8,), P("model")),
    "temperature": ((), P()),
}
# As with a batch over 'data' and tensor parallelism over 'model'.
REPLICAS = {
    **{f"dense_{i}": ((16, 8), P(None, "model")) for i in range(4)},
    "bias": ((8,), P("model")),
    "temperature": ((), P()),
}


def mesh_of(axis_type):
    return jax.make_mesh((4, 2), AXES, axis_types=(axis_type,) * 2)


def tree_of(mesh, kinds=KINDS):
    """Parameters as they lie on a mesh."""

    def leaf(shape, spec):
        place = NamedSharding(mesh, spec)
        if isinstance(mesh, AbstractMesh):
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
        values = np.sin(np.arange(1, 1 + math.prod(shape)), dtype=np.float32)
        return jax.device_put(values.reshape(shape), place)

    return {name: {"kernel": leaf(*kind)} for name, kind in kinds.items()}


def places(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def specs(tree):
    return jax.tree.map(lambda x: x.spec, tree)


def require_placed(tree, shardings):
    for (path, x), place in zip(
        jax.tree_util.tree_leaves_with_path(tree),
        jax.tree.leaves(shardings),
        strict=True,
    ):
        # An abstract array that is cut nowhere has no sharding at all.
        spec = x.sharding.spec if x.sharding else P()
        assert NamedSharding(place.mesh, spec).is_equivalent_to(place, x.ndim), path


# Every row of the catalogue.

ROWS = {
    row.name: row for room in ("optimizers", "wrappers") for row in catalog.rows(room)
}
EVERY_ROW = pytest.mark.parametrize("name", ROWS)
RUN_EVERY_TIME = ("adamw", "muon")
ROWS_TO_RUN = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in RUN_EVERY_TIME else pytest.mark.slow)
        for name in ROWS
    ],
)
POLICY = sharding.Policy(data_axis="data", stack_axes=AXES)


def built(name, mesh):
    row = ROWS[name]
    changes = row.on_mesh(mesh, AXES) if row.on_mesh else {}
    return row.build(**{**row.defaults, **changes})


def stepper(tx, name):
    supply = testing.Subject(ROWS[name]).extra_args

    def step(params, state, grads):
        def loss(p):
            return optax.tree.sum(jax.tree.map(jnp.multiply, p, grads))

        updates, state = tx.update(grads, state, params, **supply(params, grads, loss))
        return optax.apply_updates(params, updates), state

    return step


@EVERY_ROW
def test_types_after_init_and_updates_are_what_was_said(name):
    mesh = mesh_of(AxisType.Explicit)
    params, tx = tree_of(mesh), built(name, mesh)
    shardings = sharding.state_shardings(tx, params)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        require_placed(state, shardings)
        for _ in range(2):
            params, state = jax.eval_shape(stepper(tx, name), params, state, params)
            require_placed(state, shardings)


@EVERY_ROW
def test_types_are_what_a_policy_says(name):
    mesh = mesh_of(AxisType.Explicit)
    params, bare = tree_of(mesh, REPLICAS), built(name, mesh)
    shardings = sharding.state_shardings(bare, params, policy=POLICY)
    tx = sharding.stored(bare, places(params), POLICY)
    with jax.set_mesh(mesh):
        after = params, jax.eval_shape(tx.init, params)
        require_placed(after[1], shardings)
        after = jax.eval_shape(stepper(tx, name), *after, params)
        require_placed(after, (places(params), shardings))


@BOTH
@ROWS_TO_RUN
def test_state_stays_where_it_was_said_when_donated(name, axis_type):
    mesh = mesh_of(axis_type)
    params = tree_of(mesh)
    tx = sharding.placed(built(name, mesh), places(params))
    where = places(params), sharding.state_shardings(tx, params)
    grads = jax.tree.map(jnp.copy, params)
    with jax.set_mesh(mesh):
        state = sharding.init_sharded(tx, params)
        require_placed(state, where[1])
        step = jax.jit(stepper(tx, name), donate_argnums=(0, 1), out_shardings=where)
        for _ in range(2):
            params, state = step(params, state, grads)
            require_placed((params, state), where)


@BOTH
@ROWS_TO_RUN
def test_a_policy_does_not_change_values(name, axis_type):
    mesh = mesh_of(axis_type)
    params, bare = tree_of(mesh, REPLICAS), built(name, mesh)
    tx = sharding.stored(bare, places(params), POLICY)
    shardings = sharding.state_shardings(bare, params, policy=POLICY)
    single = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    alone = ROWS[name].build(**ROWS[name].defaults)
    want, _ = jax.jit(stepper(alone, name))(single, alone.init(single), single)
    with jax.set_mesh(mesh):
        state = sharding.init_sharded(tx, params)
        require_placed(state, shardings)
        got, state = jax.jit(stepper(tx, name))(params, state, params)
        require_placed((got, state), (places(params), shardings))
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        # Rounding of float32 times the slope of Newton-Schulz at zero, 485, for a step
        # of at most 0.1.
        np.testing.assert_allclose(a, b, atol=0.1 * 485 * 2e-7)


# Chains of Optax.

KERNELS = {name: {"kernel": len(shape) > 1} for name, (shape, _) in KINDS.items()}
CHAINS = {
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "lion": lambda: optax.lion(0.1),
    "multi_steps": lambda: optax.MultiSteps(
        optax.adamw(0.1), 2
    ).gradient_transformation(),
    "masked": lambda: optax.masked(optax.adam(0.1), KERNELS),
    "partition": lambda: optax.partition(
        {True: optax.adam(0.1), False: optax.set_to_zero()}, KERNELS
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(0.1),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
}


@BOTH
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_optax_stay_when_donated(name, axis_type):
    mesh, tx = mesh_of(axis_type), CHAINS[name]()
    params = tree_of(mesh)
    grads = jax.tree.map(jnp.copy, params)
    where = places(params), sharding.state_shardings(tx, params)
    state = sharding.init_sharded(tx, params)
    require_placed(state, where[1])

    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step, donate_argnums=(0, 1), out_shardings=where)
    for _ in range(2):
        params, state = run(params, state)
        require_placed((params, state), where)


def test_what_is_made_has_the_values_of_init():
    params = tree_of(mesh_of(AxisType.Auto))
    plain = jax.tree.map(np.asarray, params)
    tx = optax.chain(CHAINS["schedule_free"](), CHAINS["inject_hyperparams"]())
    got, want = sharding.init_sharded(tx, params), jax.jit(tx.init)(plain)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    tx = optax.add_noise(0.1, 0.5, key=jax.random.key(7))
    got, want = sharding.init_sharded(tx, params), tx.init(plain)
    assert jnp.all(got.rng_key == want.rng_key)


def test_moments_lie_like_parameters_and_factors_like_what_is_left_of_them():
    params = tree_of(mesh_of(AxisType.Auto))
    adam = sharding.state_shardings(optax.adam(0.1), params)[0]
    assert specs(adam.mu) == specs(adam.nu) == specs(places(params))
    assert adam.count.spec == P()
    factored = sharding.state_shardings(CHAINS["adafactor"](), params)[0]
    assert factored.v_row["dense"]["kernel"].spec == P("model")
    assert factored.v_col["dense"]["kernel"].spec == P("data")
    assert factored.v_row["layers"]["kernel"].spec == P(None, "model")
    assert factored.v["bias"]["kernel"].spec == P("model")


@BOTH
def test_a_state_can_be_made_inside_of_a_program(axis_type):
    mesh, tx = mesh_of(axis_type), optax.adam(0.1)
    params = tree_of(mesh)

    @jax.jit
    def make(params):
        return sharding.init_sharded(tx, params, places_of_params)

    places_of_params = places(params)
    with jax.set_mesh(mesh):
        require_placed(make(params), sharding.state_shardings(tx, params))


def test_none_and_empty_leaves_and_missing_parameters_do_no_harm():
    params = {**tree_of(mesh_of(AxisType.Auto)), "nothing": None}
    whole = NamedSharding(mesh_of(AxisType.Auto), P())
    params["empty"] = jax.device_put(jnp.zeros((0, 4)), whole)
    policy = sharding.Policy("data", AXES)
    state = sharding.init_sharded(optax.adamw(0.1), params, policy=policy)
    assert state[0].mu["nothing"] is None
    assert state[0].mu["empty"].sharding.spec == P()
    assert isinstance(state[1], optax.EmptyState)
    with pytest.raises(
        ValueError, match="there are no parameters, so there is no mesh"
    ):
        sharding.state_shardings(optax.adam(0.1), {"nothing": None})


def test_a_model_for_256_devices_is_placed_without_allocating():
    mesh = AbstractMesh((64, 4), AXES)
    kinds = {
        "embed": ((131072, 8192), P("data", "model")),
        "layers": ((64, 8192, 32768), P(None, "data", "model")),
    }
    params = tree_of(mesh, kinds)
    state = sharding.state_shardings(optax.adafactor(0.1), params)
    assert state[0].v_row["layers"]["kernel"].spec == P(None, "data")
    assert state[0].v_col["layers"]["kernel"].spec == P(None, "model")
    tx = optax.adamw(0.1)
    like = tree_of(mesh, {name: (shape, P()) for name, (shape, _) in kinds.items()})
    state = sharding.state_shardings(tx, like, places(params))
    assert specs(state[0].mu) == specs(places(params))
    with pytest.raises(ValueError, match="init_sharded: the mesh is abstract"):
        sharding.init_sharded(tx, params)


def test_one_device_is_a_placement_too():
    params = {"w": jnp.ones((2, 2))}
    state = sharding.init_sharded(optax.adam(0.1), params)
    assert places(state) == sharding.state_shardings(optax.adam(0.1), params)
    assert state[0].mu["w"].sharding == params["w"].sharding
    tx = sharding.stored(optax.sgd(0.5), places(params), sharding.Policy())
    updates, _ = tx.update(params, tx.init(params))
    np.testing.assert_array_equal(updates["w"], -0.5)


# Where types do not tell.


def from_shapes(fails=False):
    """A transformation whose `init` forgets where its parameters are."""

    def one(p):
        return {
            "like": jnp.ones(p.shape),
            "rows": jnp.ones(p.shape[:-1]),
            "columns": jnp.ones(p.shape[:-2] + p.shape[-1:]),
            "norms": jnp.ones((*p.shape[:-1], 1)),
            "window": jnp.ones((5, *p.shape)),
            "other": jnp.ones((3, 3)),
        }

    def init(params):
        names = ("like", "rows", "columns", "norms", "window", "other")
        parts = {k: jax.tree.map(lambda p, k=k: one(p)[k], params) for k in names}
        if fails:  # Placement of such a product is ambiguous.
            parts["gram"] = jax.tree.map(lambda p: p @ p.T, params)
        return parts

    return optax.GradientTransformation(init, lambda g, s, p=None: (g, s))


@pytest.mark.parametrize("fails", [False, True])
@BOTH
def test_a_forgotten_placement_is_found_by_path_and_shape(axis_type, fails):
    mesh, tx = mesh_of(axis_type), from_shapes(fails)
    params = tree_of(mesh, {"w": ((16, 8), P("data", "model"))})
    shardings = sharding.state_shardings(tx, params)
    state = sharding.init_sharded(tx, params)
    require_placed(state, shardings)
    found = {name: tree["w"]["kernel"].spec for name, tree in shardings.items()}
    gram = {"gram": P()} if fails else {}
    assert found == gram | {
        "like": P("data", "model"),
        "rows": P("data"),
        "columns": P("model"),
        "norms": P("data"),
        "window": P(None, "data", "model"),
        "other": P(),
    }


def test_of_a_square_parameter_a_forgotten_factor_stays_whole():
    kinds = {"w": ((8, 8), P("data", "model")), "v": ((8, 8), P())}
    params = tree_of(mesh_of(AxisType.Auto), kinds)
    lines = sharding.explain_state(from_shapes(), params).splitlines()
    assert "rows/w/kernel (8,) P() whole" in lines
    assert "rows/v/kernel (8,) P() factor" in lines
    assert "window/w/kernel (5, 8, 8) P(None, 'data', 'model') window" in lines
    lines = sharding.explain_state(from_shapes(fails=True), params).splitlines()
    assert lines[-1].startswith("init cannot be traced with Explicit axes: Sharding")


def test_a_stack_is_not_taken_for_a_window_of_the_parameter_of_its_number():
    params = tree_of(mesh_of(AxisType.Auto), {"w": ((16, 8), P("data", "model"))})
    listed = [params["w"]["kernel"]] * 2
    soap = ROWS["soap"].build(**ROWS["soap"].defaults)
    for leaf in jax.tree.leaves(sharding.state_shardings(soap, listed)):
        assert leaf.spec in (P(), P(AXES))


# Policies.


def traced(shapes, policy, kinds=REPLICAS):
    """Specs of a state that is made of bare shapes."""
    tx = optax.GradientTransformation(
        lambda _: {name: jnp.ones(shape) for name, shape in shapes.items()},
        lambda g, s, p=None: (g, s),
    )
    params = tree_of(mesh_of(AxisType.Auto), kinds)
    return specs(sharding.state_shardings(tx, params, policy=policy))


def test_zero1_cuts_the_first_axis_that_divides_and_rather_a_whole_one():
    kinds = {
        "rows": ((16, 8), P(None, "model")),
        "second": ((3, 16, 8), P(None, None, "model")),
        "twice": ((3, 16), P(None, "model")),
        "whole_first": ((16, 8), P("model")),
        "cut": ((16, 8), P("data")),
        "odd": ((3, 5), P()),
        "scalar": ((), P()),
    }
    params = tree_of(mesh_of(AxisType.Auto), kinds)
    policy = sharding.Policy(data_axis="data")
    state = sharding.state_shardings(optax.adam(0.1), params, policy=policy)[0]
    assert {name: leaf["kernel"].spec for name, leaf in state.mu.items()} == {
        "rows": P("data", "model"),
        "second": P(None, "data", "model"),
        "twice": P(None, ("model", "data")),
        "whole_first": P("model", "data"),
        "cut": P("data"),
        "odd": P(),
        "scalar": P(),
    }
    assert state.count.spec == P()
    assert traced({"a": (7, 4)}, policy) == {"a": P(None, "data")}


def test_zero1_leaves_random_keys_alone():
    params = tree_of(mesh_of(AxisType.Auto), REPLICAS)
    tx = optax.GradientTransformation(
        lambda _: {"keys": jax.random.split(jax.random.key(0), 8)}, optax.identity()[1]
    )
    policy = sharding.Policy("data", AXES, "pinned_host")
    assert sharding.init_sharded(tx, params, policy=policy)["keys"].is_fully_replicated


def test_stacks_are_cut_over_as_many_axes_as_divide_them():
    shapes = {"all": (16, 3, 3), "some": (4, 3, 3), "none": (3, 3, 3), "flat": (16, 3)}
    both = sharding.Policy(stack_axes=AXES)
    assert traced(shapes, both) == {
        "all": P(AXES),
        "some": P("data"),
        "none": P(),
        "flat": P(),
    }
    one = sharding.Policy(stack_axes="model")
    assert traced(shapes, one)["all"] == P("model")
    zero1 = sharding.Policy("data", "model")
    assert traced({"all": (16, 4, 4)}, zero1) == {"all": P("model", "data")}


def test_zero1_cuts_stacks_that_are_spread_over_another_axis():
    mesh = mesh_of(AxisType.Explicit)
    kinds = {f"dense_{i}": ((16, 8), P(None, "model")) for i in range(4)}
    params, policy = tree_of(mesh, kinds), sharding.Policy(data_axis="data")
    soap = optimizers.scale_by_soap(over=sharding.spread(mesh, "model"))
    assert sharding.state_shardings(soap, params).nu[0].spec == P("model")
    state = sharding.state_shardings(soap, params, policy=policy)
    assert state.nu[0].spec == P("model", "data")


@BOTH
def test_zero1_gathers_each_update_once_and_moves_nothing_else(axis_type):
    params = tree_of(mesh_of(axis_type), REPLICAS)
    policy = sharding.Policy(data_axis="data")
    tx = sharding.stored(optax.adamw(0.1), places(params), policy)
    state = sharding.init_sharded(tx, params, policy=policy)
    sharding.assert_collectives(jax.jit(tx.update), params, state, params, all_gather=5)


@BOTH
def test_a_state_can_rest_on_the_host(axis_type):
    mesh = mesh_of(axis_type)
    params = tree_of(mesh)
    policy = sharding.Policy(memory_kind="pinned_host")
    tx = sharding.stored(optax.adamw(0.1), places(params), policy)
    state = sharding.init_sharded(tx, params, policy=policy)
    step = jax.jit(tx.update, donate_argnums=1)
    for _ in range(2):
        for x in jax.tree.leaves(state):
            assert x.sharding.memory_kind == ("pinned_host" if x.ndim else "device")
        updates, state = step(params, state, params)
    bare = optax.adamw(0.1)
    with jax.set_mesh(mesh):
        want, _ = jax.jit(lambda p: bare.update(p, bare.init(p), p))(params)
    for a, b in zip(*map(jax.tree.leaves, (updates, want)), strict=True):
        # The same gradient twice; float32 has 24 bits.
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_functions_get_parameters_where_they_live():
    mesh = mesh_of(AxisType.Explicit)
    params, seen = tree_of(mesh, REPLICAS), []

    def update(updates, state, params=None, *, loss_fn, value, **extra_args):
        del extra_args
        seen.append(jax.typeof(params["dense_0"]["kernel"]).sharding.spec)
        return jax.grad(loss_fn)(params), state

    def loss(p):
        seen.append(jax.typeof(p["dense_0"]["kernel"]).sharding.spec)
        return optax.tree.sum(p)

    inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
    tx = sharding.stored(inner, places(params), sharding.Policy("data"))
    with jax.set_mesh(mesh):
        step = jax.jit(lambda p: tx.update(p, (), p, loss_fn=loss, value=1.0))
        updates, _ = step(params)
    assert seen == [P("data", "model"), P(None, "model")]
    require_placed(updates, places(params))


# What is made can be donated.


@pytest.mark.parametrize("name", ["prodigy", "mechanize"])
def test_no_state_shares_memory_with_parameters_or_itself(name):
    made = {
        "prodigy": lambda: optax.contrib.prodigy(),
        "mechanize": lambda: optax.contrib.mechanize(optax.adam(0.1)),
    }
    params = tree_of(mesh_of(AxisType.Auto))
    state = sharding.init_sharded(made[name](), params)
    both = jax.tree.leaves((params, state))
    memory = [x.addressable_shards[0].data.unsafe_buffer_pointer() for x in both]
    assert len(set(memory)) == len(memory)


# Misuse.


def refused(params, told=None, policy=None):
    sharding.state_shardings(optax.adam(0.1), params, told, policy)


def test_trees_that_differ_are_refused_by_leaf():
    params = tree_of(mesh_of(AxisType.Auto))
    told = places(params)
    fewer = {name: told[name] for name in told if name != "dense"}
    with pytest.raises(
        ValueError, match="'dense/kernel' is in params but not in their"
    ):
        refused(params, fewer)
    fewer = {name: params[name] for name in params if name != "dense"}
    with pytest.raises(
        ValueError, match="'dense/kernel' is in their shardings but not"
    ):
        refused(fewer, told)


def test_a_leaf_without_a_sharding_is_refused():
    params = tree_of(mesh_of(AxisType.Auto))
    bare = {**params, "dense": {"kernel": np.ones((2, 2))}}
    with pytest.raises(TypeError, match="'dense/kernel' has the sharding None; give"):
        refused(bare)
    with pytest.raises(TypeError, match=r"'dense/kernel' has the sharding P\("):
        refused(params, {**places(params), "dense": {"kernel": P("data")}})
    with pytest.raises(TypeError, match="has the sharding None"):
        jax.jit(lambda p: sharding.init_sharded(optax.adam(0.1), p))(params)


def test_a_spec_that_does_not_fit_its_leaf_is_refused():
    mesh = mesh_of(AxisType.Auto)
    params = {"w": np.ones((16, 12)), "b": np.ones(3)}
    told = {"w": NamedSharding(mesh, P(None, AXES)), "b": NamedSharding(mesh, P())}
    match = (
        r"leaf 'w' has shape \(16, 12\), and its axis 1 of size 12 .* data=4 x model=2"
    )
    with pytest.raises(ValueError, match=match):
        refused(params, told)
    told["w"], told["b"] = told["b"], told["w"]
    with pytest.raises(ValueError, match=r"'b' of shape \(3,\) has fewer axes than"):
        refused(params, told)


def test_several_meshes_are_refused():
    params = tree_of(mesh_of(AxisType.Auto))
    told = places(params)
    for other in (
        NamedSharding(mesh_of(AxisType.Explicit), P()),
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    ):
        with pytest.raises(
            ValueError, match=r"'dense/kernel' is on .* 'bias/kernel' is"
        ):
            refused(params, {**told, "dense": {"kernel": other}})
    with pytest.raises(ValueError, match=r"parameter 'bias/kernel' is on .* move it"):
        single = jax.device_put(params, jax.devices()[0])
        sharding.init_sharded(optax.adam(0.1), single, told)


def test_a_mesh_of_mixed_axes_is_refused():
    types = (AxisType.Auto, AxisType.Explicit)
    params = tree_of(jax.make_mesh((4, 2), AXES, axis_types=types))
    with pytest.raises(
        ValueError, match="make all of them Explicit or all of them Auto"
    ):
        refused(params)


def test_axes_that_the_mesh_does_not_have_are_refused():
    params = tree_of(mesh_of(AxisType.Auto))
    for policy in (
        sharding.Policy("rows"),
        sharding.Policy(stack_axes=("data", "rows")),
    ):
        with pytest.raises(
            ValueError, match=r"'rows', but the mesh has \('data', 'mod"
        ):
            refused(params, policy=policy)
    with pytest.raises(ValueError, match="memory kind: attic"):
        refused(params, policy=sharding.Policy(memory_kind="attic"))


def test_what_init_itself_refuses_is_shown():
    def init(params):
        raise ValueError("no such thing")

    tx = optax.GradientTransformation(init, lambda g, s, p=None: (g, s))
    with pytest.raises(ValueError, match="no such thing"):
        sharding.state_shardings(tx, tree_of(mesh_of(AxisType.Auto)))
