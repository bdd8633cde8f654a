"""The cheapest way for a stack, by shapes and mesh alone, at stated speeds."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import kernels, sharding

LINE = AbstractMesh((8,), ("fsdp",))
GRID = AbstractMesh((4, 2), ("fsdp", "tp"))
# Only work counts, or only bytes do, or only the number of collectives.
WORK = sharding.Hardware(flops=1.0, link=1e30, latency=0.0)
BYTES = sharding.Hardware(flops=1e30, link=1.0, latency=0.0)
CALLS = sharding.Hardware(flops=1e30, link=1e30, latency=1.0)


def best(shape, spec, mesh, hardware, **options):
    found = sharding.cheapest(
        shape, spec, mesh, flops=1e6, hardware=hardware, **options
    )
    return found.best


def test_a_stack_that_is_cut_along_its_matrices_only_stays_where_it_is():
    way = best((16, 32, 32), P("fsdp"), LINE, sharding.Hardware())
    assert (way.name, way.flops, way.bytes, way.collectives) == ("local", 2e6, 0, 0)


def test_matrices_dealt_out_cost_two_exchanges_and_a_share_of_the_work():
    way = best((16, 32, 64), P(None, "fsdp", "tp"), GRID, WORK)
    held = 4 * 16 * 32 * 64 / 8
    assert (way.name, way.axes) == ("layer-sharded", ("fsdp", "tp"))
    assert (way.flops, way.bytes, way.collectives) == (2e6, 2 * held * 7 / 8, 2)


def test_what_is_replicated_is_shared_and_gathered():
    way = best((16, 32, 64), P(), LINE, WORK)
    assert (way.name, way.collectives) == ("layer-sharded", 1)
    assert way.bytes == 4 * 16 * 32 * 64 * 7 / 8
    assert best((16, 32, 64), P(), LINE, BYTES).name == "local"


def test_where_only_collectives_count_all_devices_do_all():
    way = best((2, 32, 64), P(None, "fsdp"), LINE, CALLS)
    assert (way.name, way.flops, way.collectives) == ("duplicated", 2e6, 1)
    assert way.bytes == 4 * 2 * 32 * 64 * 7 / 8


def test_three_matrices_on_eight_devices_are_the_work_of_one():
    assert best((3, 32, 64), P(None, "fsdp"), LINE, WORK).flops == 1e6


def test_an_axis_left_out_is_gathered_before():
    ways = sharding.cheapest((4, 32, 64), P(None, "fsdp", "tp"), GRID, flops=1e6).ways
    (way,) = (way for way in ways if way.axes == ("fsdp",))
    held = 4 * 4 * 32 * 64 / 8
    # One gather over tp, and then twice the bytes there and back.
    assert way.bytes == held + 2 * 2 * held * 3 / 4
    assert way.collectives == 3


def test_block_periodic_is_shown_only_when_asked_for():
    shape, spec = (16, 32, 64), P(None, "fsdp")
    names = {way.name for way in sharding.cheapest(shape, spec, LINE, flops=8e6).ways}
    assert "block-periodic" not in names
    way = best(shape, spec, LINE, BYTES, every=4, block_flops=5e4)
    whole = best(shape, spec, LINE, WORK)
    assert way.name == "block-periodic"
    assert way.bytes == whole.bytes / 4
    assert way.flops == (2 * 1e6 + 3 * 16 * 5e4) / 4


@pytest.mark.parametrize("where", ["line", "grid"])
def test_the_bytes_are_those_of_the_program(where):
    mesh, spec = {
        "line": (LINE, P(None, "fsdp", None)),
        "grid": (GRID, P(None, "tp", "fsdp")),
    }[where]
    real = jax.make_mesh(mesh.axis_sizes, mesh.axis_names, axis_types=_explicit(mesh))
    kernel = sharding.over_axis(kernels.newton_schulz, real, mesh.axis_names)
    place = NamedSharding(real, spec)
    x = jax.ShapeDtypeStruct((8, 16, 32), jnp.float32, sharding=place)
    with jax.set_mesh(real):
        found = sharding.collectives(jax.jit(kernel), x)
    way = best(x.shape, spec, mesh, WORK)
    assert (way.bytes, way.collectives) == (found.bytes, sum(found.counts.values()))


def _explicit(mesh):
    return (AxisType.Explicit,) * len(mesh.axis_names)


def test_ways_come_in_the_order_of_time_and_are_printed_so():
    found = sharding.cheapest((64, 512, 512), P(None, "fsdp", "tp"), GRID, flops=8e9)
    seconds = [way.seconds for way in found.ways]
    assert all(a <= b for a, b in itertools.pairwise(seconds))
    head, first, *_ = str(found).splitlines()
    assert head.startswith("64 x (512, 512) cut as")
    assert found.best.name in first and "2 collectives" in first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((4, 32), P(), LINE), r"stack \(k, m, n\)"),
        (((4, 32, 0), P(), LINE), r"stack \(k, m, n\)"),
        (((4, 32, 32), P(None, "tp"), LINE), "names 'tp'"),
        (((4, 30, 32), P(None, "fsdp"), LINE), "30 of .* does not divide"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        sharding.cheapest(*arguments, flops=1.0)


def test_numbers_of_no_use_are_refused():
    with pytest.raises(ValueError, match="every must be 1"):
        sharding.cheapest((4, 32, 32), P(None, "fsdp"), LINE, flops=1.0, every=0)
    with pytest.raises(ValueError, match="link must be above 0"):
        sharding.Hardware(link=0.0)
