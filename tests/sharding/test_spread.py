"""Methods with a state for each matrix, spread over a mesh of eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import optimizers, sharding

SPECS = {
    "rows": {"out": P("d", None), "up": P("d", None), "down": P("d", None)},
    "both": {"out": P("d", "t"), "up": P("d", "t"), "down": P("t", "d")},
    "none": {"out": P(), "up": P(), "down": P()},
    "crossed": {"out": P(("t", "d"), None), "up": P(None, ("t", "d")), "down": P("t")},
}
SHAPES = {"out": (8, 8), "up": (8, 16), "down": (16, 8)}
LAYERS = 3


def grid(kind):
    kind = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}[kind]
    return jax.make_mesh((4, 2), ("d", "t"), axis_types=(kind,) * 2)


@functools.cache
def gradients(step):
    random = np.random.default_rng(step)
    return {
        f"layer_{i}": {
            name: {"kernel": random.normal(size=shape).astype(np.float32)}
            for name, shape in SHAPES.items()
        }
        for i in range(LAYERS)
    }


def placed(tree, mesh, cut):
    return {
        layer: {
            name: {
                "kernel": jax.device_put(
                    leaf["kernel"], NamedSharding(mesh, SPECS[cut][name])
                )
            }
            for name, leaf in own.items()
        }
        for layer, own in tree.items()
    }


def walk(tx, given):
    """Returns the updates of three steps, the last state, and the shardings of both."""
    state, step, out = tx.init(given[0]), jax.jit(tx.update), []
    for g in given:
        updates, state = step(g, state, g)
        out.append(updates)
    return out, state


LOW = {"rank": 3, "every": 2}
METHODS = {
    "soap": functools.partial(optimizers.soap, 0.1, every=2),
    "shampoo": functools.partial(optimizers.shampoo, 0.1, every=2, block_size=12),
    "dion": functools.partial(optimizers.dion, 0.1, rank=3),
    "galore": functools.partial(optimizers.galore, 0.1, **LOW),
    "natural_galore": functools.partial(optimizers.natural_galore, 0.1, **LOW),
    "fira": functools.partial(optimizers.fira, 0.1, **LOW),
    "apollo": functools.partial(optimizers.apollo, 0.1, **LOW),
}
CASES = [
    *(("soap", kind, cut) for kind in ("explicit", "auto") for cut in SPECS),
    *((name, kind, "both") for name in METHODS for kind in ("explicit", "auto")),
]


@functools.cache
def alone(name):
    given = [jax.tree.map(jnp.asarray, gradients(step)) for step in range(3)]
    return walk(METHODS[name](), given)[0]


@pytest.mark.parametrize(("name", "kind", "cut"), dict.fromkeys(CASES))
def test_updates_equal_one_device_and_all_stays_in_place(name, kind, cut):
    mesh = grid(kind)
    given = [placed(gradients(step), mesh, cut) for step in range(3)]
    tx = METHODS[name](over=sharding.spread(mesh, ("d", "t")))
    tx = sharding.placed(tx, jax.tree.map(lambda x: x.sharding, given[0]))
    with jax.set_mesh(mesh):
        got, state = walk(tx, given)
        start = tx.init(given[0])
    for mine, theirs in zip(got, alone(name), strict=True):
        for a, b in zip(*map(jax.tree.leaves, (mine, theirs)), strict=True):
            # A basis is found up to rounding times the gaps between eigenvalues.
            np.testing.assert_allclose(a, b, atol=2e-4)
    for a, b in zip(*map(jax.tree.leaves, (got[0], given[0])), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, b.ndim)
    for a, b in zip(*map(jax.tree.leaves, (state, start)), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, b.ndim)
        assert a.ndim != 3 or a.sharding.spec[0] == ("d", "t")


@pytest.mark.parametrize("kind", ["explicit", "auto"])
@pytest.mark.parametrize("name", METHODS)
def test_a_shape_of_matrices_costs_two_all_to_alls(name, kind):
    mesh = grid(kind)
    given = placed(gradients(0), mesh, "both")
    tx = METHODS[name](over=sharding.spread(mesh, ("d", "t")))
    tx = sharding.placed(tx, jax.tree.map(lambda x: x.sharding, given))
    with jax.set_mesh(mesh):
        sharding.assert_collectives(
            *(tx.update, given, tx.init(given), given),
            all_to_all=(3 if name == "dion" else 2) * len(SHAPES),
            total=(3 if name == "dion" else 2) * len(SHAPES),
        )
