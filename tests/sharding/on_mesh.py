"""Parameters on meshes of eight devices, and the rows of the catalogue on them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from optlab import catalog, testing

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


ROWS = {
    row.name: row.whole()
    for room in ("optimizers", "wrappers")
    for row in catalog.rows(room)
}
# Vectors are named kernel here, and this row goes by names.
_GOES_BY_NAMES = ROWS["riemannian_sgd"]
ROWS["riemannian_sgd"] = dataclasses.replace(
    _GOES_BY_NAMES,
    defaults={**_GOES_BY_NAMES.defaults, "views": "^(dense|same|layers)"},
)
EVERY_ROW = pytest.mark.parametrize("name", ROWS)
RUN_EVERY_TIME = ("adamw", "muon")
ROWS_TO_RUN = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in RUN_EVERY_TIME else pytest.mark.slow)
        for name in ROWS
    ],
)


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
