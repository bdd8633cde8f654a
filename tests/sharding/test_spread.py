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
        # Simulated devices share threads: one program at a time, or they may hang.
        updates, state = jax.block_until_ready(step(g, state, g))
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


def test_padded_states_go_on_on_a_mesh_of_another_size():
    def on(devices):
        mesh = jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices])
        tx = METHODS["soap"](over=sharding.spread(mesh, "d", pad=8))
        cut = NamedSharding(mesh, P("d"))
        given = [
            jax.tree.map(lambda x: jax.device_put(x, cut), gradients(step))
            for step in range(3)
        ]
        return mesh, tx, given

    mesh, tx, given = on(8)
    with jax.set_mesh(mesh):
        _, state = walk(tx, given[:2])
        want, _ = tx.update(given[2], state, given[2])
    for devices in (4, 1):
        mesh, tx, given = on(devices)
        with jax.set_mesh(mesh):
            start = tx.init(given[0])
            moved = jax.tree.map(
                lambda x, like: jax.device_put(np.asarray(x), like.sharding),
                state,
                start,
            )
            got, _ = jax.jit(tx.update)(given[2], moved, given[2])
        for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"axes": "x"}, r"spread: the mesh has axes \('d', 't'\), got \('x',\)"),
        ({"axes": ("d", "t"), "pad": 12}, "the 8 devices of .* do not divide pad=12"),
        ({"axes": "d", "wire_dtype": "int8"}, "wire_dtype must be one of .*'int8'"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        sharding.spread(grid("explicit"), **arguments)


def test_a_mesh_of_another_shape_is_refused():
    tx = METHODS["soap"](over=sharding.spread(grid("explicit"), "d"))
    mesh = jax.make_mesh((2, 4), ("d", "t"))
    given = placed(gradients(0), mesh, "both")
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"made for a mesh of.*4"):
        tx.init(given)


def test_unseen_placements_are_refused_with_the_remedy():
    mesh = grid("auto")
    tx = METHODS["soap"](over=sharding.spread(mesh, "d"))
    given = placed(gradients(0), mesh, "both")
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"sharding\.placed\(tx"):
        jax.jit(tx.init)(given)


@pytest.mark.parametrize("name", METHODS)
def test_leaves_without_entries_pass_through(name):
    mesh = grid("explicit")
    given = placed(gradients(0), mesh, "both")
    empty = jax.device_put(jnp.zeros((0, 4)), NamedSharding(mesh, P()))
    given["layer_0"]["none"] = {"kernel": empty}
    tx = METHODS[name](over=sharding.spread(mesh, ("d", "t")))
    with jax.set_mesh(mesh):
        updates, _ = jax.jit(tx.update)(given, tx.init(given), given)
    assert updates["layer_0"]["none"]["kernel"].shape == (0, 4)
