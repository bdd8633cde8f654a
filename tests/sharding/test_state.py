"""The state of every optimizer gets a placement, and keeps it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from optlab import catalog, sharding, testing

P = PartitionSpec
ROWS = {
    row.name: row for room in ("optimizers", "wrappers") for row in catalog.rows(room)
}
KINDS = {
    "dense": ((16, 8), P("data", "model")),
    "same": ((16, 8), P("data", "model")),
    "layers": ((2, 16, 8), P(None, None, "model")),
    "bias": ((8,), P("model")),
    "temperature": ((), P()),
}


def mesh_of(axis_type):
    names = ("data", "model")
    return jax.make_mesh((4, 2), names, axis_types=(axis_type,) * 2)


def tree_of(mesh, kinds=KINDS):
    """Parameters as they lie on a mesh."""

    def leaf(shape, spec):
        place = NamedSharding(mesh, spec)
        if isinstance(mesh, AbstractMesh):
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
        values = np.sin(np.arange(1, 1 + math.prod(shape)), dtype=np.float32)
        return jax.device_put(values.reshape(shape), place)

    return {name: {"kernel": leaf(*kind)} for name, kind in kinds.items()}


def built(row, mesh):
    changes = row.on_mesh(mesh, ("data", "model")) if row.on_mesh else {}
    return row.build(**{**row.defaults, **changes})


def stepper(tx, row):
    supply = testing.Subject(row).extra_args

    def step(params, state, grads):
        def loss(p):
            return optax.tree.sum(jax.tree.map(jnp.multiply, p, grads))

        updates, state = tx.update(grads, state, params, **supply(params, grads, loss))
        return optax.apply_updates(params, updates), state

    return step


def require_placed(tree, shardings):
    for (path, x), place in zip(
        jax.tree_util.tree_leaves_with_path(tree),
        jax.tree.leaves(shardings),
        strict=True,
    ):
        spec = x.sharding.spec if x.sharding else P()
        got = NamedSharding(place.mesh, spec)
        assert got.is_equivalent_to(place, x.ndim), (path, spec, place)


@pytest.mark.parametrize("name", ROWS)
def test_types_after_init_and_update_are_what_was_said(name):
    mesh = mesh_of(AxisType.Explicit)
    params, row = tree_of(mesh), ROWS[name]
    tx = built(row, mesh)
    shardings = sharding.state_shardings(tx, params)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        require_placed(state, shardings)
        step = stepper(tx, row)
        for _ in range(2):
            params, state = jax.eval_shape(step, params, state, params)
            require_placed(state, shardings)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_state_of_the_real_thing_is_where_it_was_said(axis_type):
    mesh = mesh_of(axis_type)
    params, tx = tree_of(mesh), optax.adamw(1e-3)
    state = sharding.init_sharded(tx, params)
    require_placed(state, sharding.state_shardings(tx, params))
    for name, (_, spec) in KINDS.items():
        assert state[0].mu[name]["kernel"].sharding.spec == spec
