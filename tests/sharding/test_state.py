"""The state of every optimizer gets a placement, and keeps it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import sharding
from tests.sharding import on_mesh


@on_mesh.EVERY_ROW
def test_types_after_init_and_updates_are_what_was_said(name):
    mesh = on_mesh.mesh_of(AxisType.Explicit)
    params, tx = on_mesh.tree_of(mesh), on_mesh.built(name, mesh)
    shardings = sharding.state_shardings(tx, params)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        on_mesh.require_placed(state, shardings)
        for _ in range(2):
            params, state = jax.eval_shape(
                on_mesh.stepper(tx, name), params, state, params
            )
            on_mesh.require_placed(state, shardings)


@on_mesh.BOTH
@on_mesh.ROWS_TO_RUN
def test_state_stays_where_it_was_said_when_donated(name, axis_type):
    mesh = on_mesh.mesh_of(axis_type)
    params = on_mesh.tree_of(mesh)
    tx = sharding.placed(on_mesh.built(name, mesh), on_mesh.places(params))
    where = on_mesh.places(params), sharding.state_shardings(tx, params)
    grads = jax.tree.map(jnp.copy, params)
    with jax.set_mesh(mesh):
        state = sharding.init_sharded(tx, params)
        on_mesh.require_placed(state, where[1])
        step = jax.jit(
            on_mesh.stepper(tx, name), donate_argnums=(0, 1), out_shardings=where
        )
        for _ in range(2):
            params, state = jax.block_until_ready(step(params, state, grads))
            on_mesh.require_placed((params, state), where)


# Chains of Optax.

KERNELS = {
    name: {"kernel": len(shape) > 1} for name, (shape, _) in on_mesh.KINDS.items()
}
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


@on_mesh.BOTH
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_optax_stay_when_donated(name, axis_type):
    mesh, tx = on_mesh.mesh_of(axis_type), CHAINS[name]()
    params = on_mesh.tree_of(mesh)
    grads = jax.tree.map(jnp.copy, params)
    where = on_mesh.places(params), sharding.state_shardings(tx, params)
    state = sharding.init_sharded(tx, params)
    on_mesh.require_placed(state, where[1])

    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step, donate_argnums=(0, 1), out_shardings=where)
    for _ in range(2):
        params, state = jax.block_until_ready(run(params, state))
        on_mesh.require_placed((params, state), where)


def test_what_is_made_has_the_values_of_init():
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto))
    plain = jax.tree.map(np.asarray, params)
    tx = optax.chain(CHAINS["schedule_free"](), CHAINS["inject_hyperparams"]())
    got, want = sharding.init_sharded(tx, params), jax.jit(tx.init)(plain)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    tx = optax.add_noise(0.1, 0.5, key=jax.random.key(7))
    got, want = sharding.init_sharded(tx, params), tx.init(plain)
    assert jnp.all(got.rng_key == want.rng_key)


def test_moments_lie_like_parameters_and_factors_like_what_is_left_of_them():
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto))
    adam = sharding.state_shardings(optax.adam(0.1), params)[0]
    assert (
        on_mesh.specs(adam.mu)
        == on_mesh.specs(adam.nu)
        == on_mesh.specs(on_mesh.places(params))
    )
    assert adam.count.spec == P()
    factored = sharding.state_shardings(CHAINS["adafactor"](), params)[0]
    assert factored.v_row["dense"]["kernel"].spec == P("model")
    assert factored.v_col["dense"]["kernel"].spec == P("data")
    assert factored.v_row["layers"]["kernel"].spec == P(None, "model")
    assert factored.v["bias"]["kernel"].spec == P("model")


@on_mesh.BOTH
def test_a_state_can_be_made_inside_of_a_program(axis_type):
    mesh, tx = on_mesh.mesh_of(axis_type), optax.adam(0.1)
    params = on_mesh.tree_of(mesh)

    @jax.jit
    def make(params):
        return sharding.init_sharded(tx, params, places_of_params)

    places_of_params = on_mesh.places(params)
    with jax.set_mesh(mesh):
        on_mesh.require_placed(make(params), sharding.state_shardings(tx, params))


def test_none_and_empty_leaves_and_missing_parameters_do_no_harm():
    params = {**on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto)), "nothing": None}
    whole = NamedSharding(on_mesh.mesh_of(AxisType.Auto), P())
    params["empty"] = jax.device_put(jnp.zeros((0, 4)), whole)
    policy = sharding.Policy("data", on_mesh.AXES)
    state = sharding.init_sharded(optax.adamw(0.1), params, policy=policy)
    assert state[0].mu["nothing"] is None
    assert state[0].mu["empty"].sharding.spec == P()
    assert isinstance(state[1], optax.EmptyState)
    with pytest.raises(
        ValueError, match="there are no parameters, so there is no mesh"
    ):
        sharding.state_shardings(optax.adam(0.1), {"nothing": None})


def test_a_model_for_256_devices_is_placed_without_allocating():
    mesh = AbstractMesh((64, 4), on_mesh.AXES)
    kinds = {
        "embed": ((131072, 8192), P("data", "model")),
        "layers": ((64, 8192, 32768), P(None, "data", "model")),
    }
    params = on_mesh.tree_of(mesh, kinds)
    state = sharding.state_shardings(optax.adafactor(0.1), params)
    assert state[0].v_row["layers"]["kernel"].spec == P(None, "data")
    assert state[0].v_col["layers"]["kernel"].spec == P(None, "model")
    tx = optax.adamw(0.1)
    like = on_mesh.tree_of(
        mesh, {name: (shape, P()) for name, (shape, _) in kinds.items()}
    )
    state = sharding.state_shardings(tx, like, on_mesh.places(params))
    assert on_mesh.specs(state[0].mu) == on_mesh.specs(on_mesh.places(params))
    with pytest.raises(ValueError, match="init_sharded: the mesh is abstract"):
        sharding.init_sharded(tx, params)


def test_one_device_is_a_placement_too():
    params = {"w": jnp.ones((2, 2))}
    state = sharding.init_sharded(optax.adam(0.1), params)
    assert on_mesh.places(state) == sharding.state_shardings(optax.adam(0.1), params)
    assert state[0].mu["w"].sharding == params["w"].sharding
    tx = sharding.stored(optax.sgd(0.5), on_mesh.places(params), sharding.Policy())
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
@on_mesh.BOTH
def test_a_forgotten_placement_is_found_by_path_and_shape(axis_type, fails):
    mesh, tx = on_mesh.mesh_of(axis_type), from_shapes(fails)
    params = on_mesh.tree_of(mesh, {"w": ((16, 8), P("data", "model"))})
    shardings = sharding.state_shardings(tx, params)
    state = sharding.init_sharded(tx, params)
    on_mesh.require_placed(state, shardings)
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
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto), kinds)
    lines = sharding.explain_state(from_shapes(), params).splitlines()
    assert "rows/w/kernel (8,) P() whole" in lines
    assert "rows/v/kernel (8,) P() factor" in lines
    assert "window/w/kernel (5, 8, 8) P(None, 'data', 'model') window" in lines
    lines = sharding.explain_state(from_shapes(fails=True), params).splitlines()
    assert lines[-1].startswith("init cannot be traced with Explicit axes: Sharding")


def test_a_stack_is_not_taken_for_a_window_of_the_parameter_of_its_number():
    params = on_mesh.tree_of(
        on_mesh.mesh_of(AxisType.Auto), {"w": ((16, 8), P("data", "model"))}
    )
    listed = [params["w"]["kernel"]] * 2
    soap = on_mesh.ROWS["soap"].build(**on_mesh.ROWS["soap"].defaults)
    for leaf in jax.tree.leaves(sharding.state_shardings(soap, listed)):
        assert leaf.spec in (P(), P(on_mesh.AXES))


@on_mesh.BOTH
@pytest.mark.parametrize("name", ["prodigy", "mechanize"])
def test_no_state_shares_memory_with_parameters_or_itself(name, axis_type):
    made = {
        "prodigy": lambda: optax.contrib.prodigy(),
        "mechanize": lambda: optax.contrib.mechanize(optax.adam(0.1)),
    }
    params = on_mesh.tree_of(on_mesh.mesh_of(axis_type))
    state = sharding.init_sharded(made[name](), params)
    both = jax.tree.leaves((params, state))
    memory = [x.addressable_shards[0].data.unsafe_buffer_pointer() for x in both]
    assert len(set(memory)) == len(memory)


# Misuse.


def refused(params, told=None, policy=None):
    sharding.state_shardings(optax.adam(0.1), params, told, policy)


def test_trees_that_differ_are_refused_by_leaf():
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto))
    told = on_mesh.places(params)
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
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto))
    bare = {**params, "dense": {"kernel": np.ones((2, 2))}}
    with pytest.raises(TypeError, match="'dense/kernel' has the sharding None; give"):
        refused(bare)
    with pytest.raises(TypeError, match=r"'dense/kernel' has the sharding P\("):
        refused(params, {**on_mesh.places(params), "dense": {"kernel": P("data")}})
    with pytest.raises(TypeError, match="has the sharding None"):
        jax.jit(lambda p: sharding.init_sharded(optax.adam(0.1), p))(params)


def test_a_spec_that_does_not_fit_its_leaf_is_refused():
    mesh = on_mesh.mesh_of(AxisType.Auto)
    params = {"w": np.ones((16, 12)), "b": np.ones(3)}
    told = {
        "w": NamedSharding(mesh, P(None, on_mesh.AXES)),
        "b": NamedSharding(mesh, P()),
    }
    match = (
        r"leaf 'w' has shape \(16, 12\), and its axis 1 of size 12 .* data=4 x model=2"
    )
    with pytest.raises(ValueError, match=match):
        refused(params, told)
    told["w"], told["b"] = told["b"], told["w"]
    with pytest.raises(ValueError, match=r"'b' of shape \(3,\) has fewer axes than"):
        refused(params, told)


def test_several_meshes_are_refused():
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto))
    told = on_mesh.places(params)
    for other in (
        NamedSharding(on_mesh.mesh_of(AxisType.Explicit), P()),
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
    params = on_mesh.tree_of(jax.make_mesh((4, 2), on_mesh.AXES, axis_types=types))
    with pytest.raises(
        ValueError, match="make all of them Explicit or all of them Auto"
    ):
        refused(params)


def test_axes_that_the_mesh_does_not_have_are_refused():
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto))
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
        sharding.state_shardings(tx, on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto)))
