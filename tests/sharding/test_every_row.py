"""Every optimizer of the catalogue walks twenty steps on a mesh as on one device."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import catalog, sharding, testing

STEPS = 20
ROWS = {row.name: row for row in catalog.rows("optimizers")}
MESHES = {
    "line": ((8,), ("fsdp",), P("fsdp", None), P(None, "fsdp")),
    "grid": ((4, 2), ("fsdp", "tp"), P("fsdp", "tp"), P("tp", "fsdp")),
}
# Relative to the largest entry of an update. Rounding, 6e-8, grows where a step divides
# by what is small: 100 for most methods, 485 for Newton-Schulz, and for methods that
# decompose, sort or invert what is nearly degenerate as much as the gaps are small.
ROUNDING = 1e-6
SLOPES = {
    **dict.fromkeys(
        ("muon", "normuon", "turbo_muon", "scion", "dion2", "muon_bp", "lanton"), 30
    ),
    **dict.fromkeys(("soap", "shampoo", "psgd_kron", "dion", "kfac"), 1000),
    **dict.fromkeys(("galore", "fira", "apollo", "frugal"), 1000),
    "natural_galore": 10_000,
    "riemannian_sgd": 10,
    **dict.fromkeys(("mkor", "mkor_h", "mfac", "adahessian"), 100),
    # A step's length is made of those before, each a sum in another order.
    **dict.fromkeys(("dog", "ldog", "dowg"), 4),
    # By the length of the weights over that of a step.
    **dict.fromkeys(("normalize_and_project", "momo"), 10),
}


@functools.cache
def gradients():
    random = np.random.default_rng(0)

    def draw():
        return {
            f"layer_{i}": {
                name: {"kernel": random.normal(size=shape).astype(np.float32)}
                for name, shape in {"out": (16, 16), "up": (16, 32)}.items()
            }
            for i in range(3)
        }

    return [draw() for _ in range(STEPS)]


def walk(step, tx, given):
    params, state, updates = given[0], tx.init(given[0]), None
    for g in given:
        # Simulated devices share threads: one program at a time, or they may hang.
        params, state, updates = jax.block_until_ready(step(params, state, g))
    return updates, state


@functools.cache
def alone(name):
    subject = testing.Subject(ROWS[name], gradients()[0])
    return walk(subject.step, subject.tx, gradients())[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["ex", "auto"])
@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("name", ROWS)
def test_twenty_steps_are_those_of_one_device(name, shape, kind):
    sizes, axes, *cuts = MESHES[shape]
    mesh = jax.make_mesh(sizes, axes, axis_types=(kind,) * len(axes))
    subject = testing.Subject(ROWS[name], gradients()[0])
    tx = subject.tx
    if ROWS[name].on_mesh is not None:
        tx = subject.build(**ROWS[name].on_mesh(mesh, axes))
    leaves, structure = jax.tree.flatten(gradients()[0])
    where = structure.unflatten(
        NamedSharding(mesh, cuts[i % 2]) for i, _ in enumerate(leaves)
    )
    tx = sharding.placed(tx, where)
    given = [jax.device_put(g, where) for g in gradients()]
    with jax.set_mesh(mesh):
        got, state = walk(subject.step_of(tx), tx, given)
        start = tx.init(given[0])
    allowed = ROUNDING * SLOPES.get(name, 1)
    for a, b in zip(*map(jax.tree.leaves, (got, alone(name))), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=allowed * np.abs(b).max())
    for a, b in zip(*map(jax.tree.leaves, (got, given[0])), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, b.ndim)
    for a, b in zip(*map(jax.tree.leaves, (state, start)), strict=True):
        whole = a.sharding.is_fully_replicated and b.sharding.is_fully_replicated
        assert whole or a.sharding.is_equivalent_to(b.sharding, b.ndim)
