"""Muon on a mesh: two all-to-alls for each shape, and no byte more than must be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import kernels, optimizers, sharding

DEVICES, LAYERS, D = 8, 8, 16
LINE, GRID = (8,), (4, 2)
KINDS = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
# Two shapes, each in a placement of its own.
SHAPES = {"qkv": (D, 3 * D), "out": (D, D)}
CUTS = {
    LINE: {"qkv": P("d", None), "out": P(None, "d")},
    GRID: {"qkv": P("d", "t"), "out": P("t", "d")},
}
# What the devices hold together, in float32.
HELD = 4 * LAYERS * sum(m * n for m, n in SHAPES.values())

both_kinds = pytest.mark.parametrize("kind", KINDS)
both_meshes = pytest.mark.parametrize("shape", CUTS, ids=str)


@functools.cache
def mesh(kind, shape):
    names = ("d", "t")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * len(shape))


def least(held, devices):
    """Bytes of a device, to whole matrices and back, when nothing is sent twice."""
    return 2 * held / devices * (devices - 1) / devices


def layered(where, cuts, layers):
    """A leaf for each layer and shape; values do not matter, placement does."""
    random = np.random.default_rng(0)

    def leaf(name):
        x = random.normal(size=SHAPES[name]).astype(np.float32)
        return jax.device_put(x, NamedSharding(where, cuts[name]))

    return {f"layer_{i}": {n: {"kernel": leaf(n)} for n in cuts} for i in range(layers)}


def step(where, params, axes, **options):
    """Compiles an update and its application and counts what they send.

    Also asserts that parameters and state come out where they went in.
    """
    kernel = sharding.over_axis(kernels.newton_schulz, where, axes, **options)
    tx = optimizers.muon(0.1, orthogonalize=kernel)
    tx = sharding.placed(tx, jax.tree.map(lambda x: x.sharding, params))

    def run(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(where):
        state = tx.init(params)
        program = jax.jit(run).lower(params, state, params).compile()
    before = jax.tree.leaves((params, state))
    after = jax.tree.leaves(program.output_shardings)
    for x, place in zip(before, after, strict=True):
        assert place.is_equivalent_to(x.sharding, x.ndim)
    return sharding.collectives(program)


@functools.cache
def of_layers(kind, shape, layers, **options):
    where = mesh(kind, shape)
    params = layered(where, CUTS[shape], layers)
    return step(where, params, tuple(where.shape), **options)


@both_kinds
@both_meshes
def test_each_shape_goes_there_and_back_in_one_all_to_all_each(kind, shape):
    found = of_layers(kind, shape, LAYERS)
    assert found.counts == {"all_to_all": 2 * len(SHAPES)}
    assert found.in_loops == 0
    assert {one.group_size for one in found.found} == {DEVICES}


@both_kinds
@both_meshes
def test_nothing_is_sent_twice(kind, shape):
    assert of_layers(kind, shape, LAYERS).bytes == least(HELD, DEVICES)


@both_kinds
@both_meshes
def test_more_layers_are_no_more_collectives(kind, shape):
    fewer, more = (of_layers(kind, shape, n) for n in (LAYERS // 2, LAYERS))
    assert fewer.counts == more.counts


@both_kinds
def test_half_a_float_is_half_the_bytes(kind):
    found = of_layers(kind, GRID, LAYERS, wire_dtype="bfloat16")
    assert found.counts == {"all_to_all": 2 * len(SHAPES)}
    assert found.bytes == least(HELD, DEVICES) / 2


@both_kinds
@pytest.mark.parametrize("cut", [P("d", None), P(None, "d"), P(None, ("t", "d"))])
def test_rows_columns_and_columns_over_two_axes(kind, cut):
    where = mesh(kind, GRID)
    axes = ("d", "t") if "t" in jax.tree.leaves(list(cut)) else ("d",)
    devices = 8 if len(axes) == 2 else 4
    found = step(where, layered(where, {"qkv": cut}, LAYERS), axes)
    assert found.counts == {"all_to_all": 2}
    # Beside an axis that cuts nothing its devices do the same, each for itself.
    assert {one.group_size for one in found.found} == {devices}
    held = 4 * LAYERS * 3 * D * D
    assert found.bytes == least(held, devices)


@both_kinds
@both_meshes
def test_stacked_layers_that_are_cut_between_layers_stay_where_they_are(kind, shape):
    where = mesh(kind, shape)
    place = NamedSharding(where, P(tuple(where.shape), None, None))
    x = jnp.ones((LAYERS, D, 3 * D), jnp.float32)
    params = {"layers": {"kernel": jax.device_put(x, place)}}
    assert step(where, params, tuple(where.shape)).found == ()


@both_kinds
def test_stacked_layers_and_single_ones_of_a_shape_each_go_once(kind):
    where = mesh(kind, LINE)
    stacked = NamedSharding(where, P(None, "d", None))
    x = jnp.ones((LAYERS, D, 3 * D), jnp.float32)
    params = layered(where, {"qkv": CUTS[LINE]["qkv"]}, LAYERS)
    params |= {"layers": {"kernel": jax.device_put(x, stacked)}}
    found = step(where, params, "d")
    # One shape in one placement: they are one stack.
    assert found.counts == {"all_to_all": 2}
    assert found.bytes == least(2 * 4 * LAYERS * 3 * D * D, DEVICES)
