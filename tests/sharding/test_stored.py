"""States that rest as a policy says: ZeRO-1, cut stacks, memory of the host."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optlab import optimizers, sharding
from tests.sharding import on_mesh

POLICY = sharding.Policy(data_axis="data", stack_axes=on_mesh.AXES)


@on_mesh.EVERY_ROW
def test_types_are_what_a_policy_says(name):
    mesh = on_mesh.mesh_of(AxisType.Explicit)
    params, bare = on_mesh.tree_of(mesh, on_mesh.REPLICAS), on_mesh.built(name, mesh)
    shardings = sharding.state_shardings(bare, params, policy=POLICY)
    tx = sharding.stored(bare, on_mesh.places(params), POLICY)
    with jax.set_mesh(mesh):
        after = params, jax.eval_shape(tx.init, params)
        on_mesh.require_placed(after[1], shardings)
        after = jax.eval_shape(on_mesh.stepper(tx, name), *after, params)
        on_mesh.require_placed(after, (on_mesh.places(params), shardings))


@on_mesh.BOTH
@on_mesh.ROWS_TO_RUN
def test_a_policy_does_not_change_values(name, axis_type):
    mesh = on_mesh.mesh_of(axis_type)
    params, bare = on_mesh.tree_of(mesh, on_mesh.REPLICAS), on_mesh.built(name, mesh)
    tx = sharding.stored(bare, on_mesh.places(params), POLICY)
    shardings = sharding.state_shardings(bare, params, policy=POLICY)
    single = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    alone = on_mesh.ROWS[name].build(**on_mesh.ROWS[name].defaults)
    want, _ = jax.jit(on_mesh.stepper(alone, name))(single, alone.init(single), single)
    with jax.set_mesh(mesh):
        state = sharding.init_sharded(tx, params)
        on_mesh.require_placed(state, shardings)
        got, state = jax.jit(on_mesh.stepper(tx, name))(params, state, params)
        on_mesh.require_placed((got, state), (on_mesh.places(params), shardings))
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        # Rounding of float32 times the slope of Newton-Schulz at zero, 485, for a step
        # of at most 0.1.
        np.testing.assert_allclose(a, b, atol=0.1 * 485 * 2e-7)


def traced(shapes, policy, kinds=on_mesh.REPLICAS):
    """Specs of a state that is made of bare shapes."""
    tx = optax.GradientTransformation(
        lambda _: {name: jnp.ones(shape) for name, shape in shapes.items()},
        lambda g, s, p=None: (g, s),
    )
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto), kinds)
    return on_mesh.specs(sharding.state_shardings(tx, params, policy=policy))


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
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto), kinds)
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


def test_zero1_cuts_no_factor_along_an_axis_that_its_parameter_is_whole_on():
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto), on_mesh.REPLICAS)
    tx = optax.adafactor(0.1, min_dim_size_to_factor=4)
    policy = sharding.Policy(data_axis="data")
    state = sharding.state_shardings(tx, params, policy=policy)[0]
    assert state.v_col["dense_0"]["kernel"].spec == P("data")
    assert state.v_row["dense_0"]["kernel"].spec == P("model")


def test_zero1_leaves_random_keys_alone():
    params = on_mesh.tree_of(on_mesh.mesh_of(AxisType.Auto), on_mesh.REPLICAS)
    tx = optax.GradientTransformation(
        lambda _: {"keys": jax.random.split(jax.random.key(0), 8)}, optax.identity()[1]
    )
    policy = sharding.Policy("data", on_mesh.AXES, "pinned_host")
    assert sharding.init_sharded(tx, params, policy=policy)["keys"].is_fully_replicated


def test_stacks_are_cut_over_as_many_axes_as_divide_them():
    shapes = {"all": (16, 3, 3), "some": (4, 3, 3), "none": (3, 3, 3), "flat": (16, 3)}
    both = sharding.Policy(stack_axes=on_mesh.AXES)
    assert traced(shapes, both) == {
        "all": P(on_mesh.AXES),
        "some": P("data"),
        "none": P(),
        "flat": P(),
    }
    one = sharding.Policy(stack_axes="model")
    assert traced(shapes, one)["all"] == P("model")
    zero1 = sharding.Policy("data", "model")
    assert traced({"all": (16, 4, 4)}, zero1) == {"all": P("model", "data")}


def test_zero1_cuts_stacks_that_are_spread_over_another_axis():
    mesh = on_mesh.mesh_of(AxisType.Explicit)
    kinds = {f"dense_{i}": ((16, 8), P(None, "model")) for i in range(4)}
    params, policy = on_mesh.tree_of(mesh, kinds), sharding.Policy(data_axis="data")
    soap = optimizers.scale_by_soap(over=sharding.spread(mesh, "model"))
    assert sharding.state_shardings(soap, params).nu[0].spec == P("model")
    state = sharding.state_shardings(soap, params, policy=policy)
    assert state.nu[0].spec == P("model", "data")


@on_mesh.BOTH
def test_zero1_gathers_each_update_once_and_moves_nothing_else(axis_type):
    params = on_mesh.tree_of(on_mesh.mesh_of(axis_type), on_mesh.REPLICAS)
    policy = sharding.Policy(data_axis="data")
    tx = sharding.stored(optax.adamw(0.1), on_mesh.places(params), policy)
    state = sharding.init_sharded(tx, params, policy=policy)
    sharding.assert_collectives(jax.jit(tx.update), params, state, params, all_gather=5)


@on_mesh.BOTH
def test_a_state_can_rest_on_the_host(axis_type):
    mesh = on_mesh.mesh_of(axis_type)
    params = on_mesh.tree_of(mesh)
    policy = sharding.Policy(memory_kind="pinned_host")
    tx = sharding.stored(optax.adamw(0.1), on_mesh.places(params), policy)
    state = sharding.init_sharded(tx, params, policy=policy)
    step = jax.jit(tx.update, donate_argnums=1)
    for _ in range(2):
        for x in jax.tree.leaves(state):
            assert x.sharding.memory_kind == ("pinned_host" if x.ndim else "device")
        updates, state = jax.block_until_ready(step(params, state, params))
    bare = optax.adamw(0.1)
    with jax.set_mesh(mesh):
        want, _ = jax.jit(lambda p: bare.update(p, bare.init(p), p))(params)
    for a, b in zip(*map(jax.tree.leaves, (updates, want)), strict=True):
        # The same gradient twice; float32 has 24 bits.
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_functions_get_parameters_where_they_live():
    mesh = on_mesh.mesh_of(AxisType.Explicit)
    params, seen = on_mesh.tree_of(mesh, on_mesh.REPLICAS), []

    def update(updates, state, params=None, *, loss_fn, value, **extra_args):
        del extra_args
        seen.append(jax.typeof(params["dense_0"]["kernel"]).sharding.spec)
        return jax.grad(loss_fn)(params), state

    def loss(p):
        seen.append(jax.typeof(p["dense_0"]["kernel"]).sharding.spec)
        return optax.tree.sum(p)

    inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
    tx = sharding.stored(inner, on_mesh.places(params), sharding.Policy("data"))
    with jax.set_mesh(mesh):
        step = jax.jit(lambda p: tx.update(p, (), p, loss_fn=loss, value=1.0))
        updates, _ = step(params)
    assert seen == [P("data", "model"), P(None, "model")]
    on_mesh.require_placed(updates, on_mesh.places(params))


def test_a_value_is_not_taken_for_a_model_of_one_array():
    mesh = on_mesh.mesh_of(AxisType.Explicit)
    one = on_mesh.tree_of(mesh)["bias"]["kernel"]
    tx = sharding.stored(optax.polyak_sgd(), one.sharding, sharding.Policy("data"))
    with jax.set_mesh(mesh):
        updates, _ = jax.jit(lambda p, v: tx.update(p, tx.init(p), p, value=v))(
            one, 1.0
        )
    assert updates.sharding.is_equivalent_to(one.sharding, 1)
