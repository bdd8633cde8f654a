"""Collectives are counted, and their bytes, in every spelling of compiled programs."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import sharding

KINDS = ("explicit", "auto")
EIGHT = "replica_groups={{0,1,2,3,4,5,6,7}}"


def program(*instructions, header="HloModule f, num_partitions=8", before=""):
    body = "\n".join(f"  {line}" for line in instructions)
    return f"{header}\n{before}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


LOOPS = """
%inner (p: f32[8]) -> f32[8] {
  %g = f32[8] all-gather(%p), replica_groups=[1,8]<=[8], metadata={op_name="f/dot"}
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%p), condition=%asks, body=%inner, INNER
}

%asks (p: (s32[], f32[8])) -> pred[] {
  %r = f32[8] all-reduce(%p), replica_groups={}, to_apply=%add
}
"""


def one(instruction, **options):
    (found,) = sharding.collectives(program(instruction, **options)).found
    return found


@pytest.mark.parametrize(
    ("operation", "sent"),
    [
        *(("all-to-all", 224), ("all-gather", 224), ("all-reduce", 448)),
        *(("reduce-scatter", 1792), ("collective-broadcast", 256)),
        ("ragged-all-to-all", 224),
    ],
)
def test_each_kind_has_the_bytes_of_its_ring(operation, sent):
    found = one(f"%a = f32[16,4]{{1,0}} {operation}(%p, %q), {EIGHT}")
    assert found.kind == operation.replace("-", "_")
    assert (found.bytes, found.times, found.in_loop) == (sent, 1, False)


def test_a_permutation_sends_all_to_one_device():
    pairs = "source_target_pairs={{0,1},{1,2},{2,0}}"
    found = one(f"%a = f32[16,4] collective-permute(%p), channel_id=1, {pairs}")
    assert (found.kind, found.bytes) == ("collective_permute", 256)
    assert found.group_size == 2


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{{0,2},{1,3,4},{5},{6}}", 3),
        ("{}", 8),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("[4,2]<=[2,2,2]T(2,1,0)", 2),
        ("mesh['d'=4,'t'=2] {'d'}", 4),
        ("mesh['d'=4,'t'=2] {'t','d'}", 8),
        ("mesh['axis_0'=2,'axis_1'=1], device_ids=([4,2]T(1,0)) {'axis_0'}", 2),
        ("mesh['x'=8] {'x':(2)4}", 4),
        ("mesh['x'=8,'y'=3] {'x':(4)2,'y'}", 6),
    ],
)
def test_groups_are_read_in_every_spelling(groups, size):
    line = f"%a = f32[24] all-gather(%p), channel_id=1, replica_groups={groups}"
    found = one(f"{line}, dimensions={{0}}, use_global_device_ids=true")
    assert found.group_size == size
    assert found.bytes == pytest.approx(96 * (size - 1) / size)


def test_replicas_and_partitions_are_all_devices():
    header = "HloModule f, replica_count=2, num_partitions=4"
    line = "%a = f32[8] all-gather(%p), replica_groups={}"
    assert one(line, header=header).group_size == 8
    assert one(line, header="HloModule f").group_size == 1
    assert one(line, header="HloModule f").bytes == 0


def test_unknown_groups_are_refused_and_shown():
    with pytest.raises(ValueError, match=r"cannot read the groups .*replica_groups=#"):
        one("%a = f32[8] all-gather(%p), replica_groups=#7")


@pytest.mark.parametrize(
    ("result", "size"),
    [
        *(("bf16[3,5]", 30), ("u16[3,5]{1,0}", 30), ("pred[9]", 9), ("f64[]", 8)),
        *(("s4[9]{0:E(4)}", 5), ("u2[9]", 3), ("f8e4m3fn[6]", 6), ("c64[2]", 16)),
        *(("f4e2m1fn[6]", 3), ("s32[<=8]", 32), ("f32[0,7]", 0)),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 4096),
        ("(f32[2]{0}, /*index=1*/bf16[2,2]{1,0:T(8,128)(2,1)})", 16),
        ("(f32[1], f32[1], f32[1], f32[1], f32[1], /*index=5*/token[])", 20),
    ],
)
def test_sizes_of_every_dtype_and_of_tuples(result, size):
    assert one(f"ROOT %a = {result} all-to-all(%p), {EIGHT}").bytes == size * 7 / 8


@pytest.mark.parametrize(
    "start",
    [
        f"((f32[4]), f32[32]) all-gather-start(%p), {EIGHT}",
        f"(f32[4]{{0}}, f32[32]{{0}}) all-gather-start(%p), {EIGHT}",
        f"((f32[4], s8[4]), (f32[16], s8[64])) all-gather-start(%p, %q), {EIGHT}",
        f"((f32[32]{{0}}), f32[32]{{0}}, u32[], u32[]) all-to-all-start(%p), {EIGHT}",
        f"((f32[128]), f32[4]) reduce-scatter-start(%p), {EIGHT}",
        f"(f32[8], f32[8]) all-reduce-start(%p, %q), {EIGHT}, to_apply=%add",
        f"f32[16]{{0}} all-reduce-start(%p), {EIGHT}, to_apply=%add",
        "(f32[28], f32[28], u32[], u32[]) collective-permute-start(%p),"
        " source_target_pairs={{0,1},{1,0}}",
    ],
)
def test_a_start_and_its_done_are_one_collective(start):
    kind = start.split("-start(")[0].split()[-1]
    # All of them give 128 bytes of result, or as many bytes to send as those.
    found = one(f"%s = {start}\n  %d = f32[32] {kind}-done(%s)")
    assert found.kind == kind.replace("-", "_")
    assert found.bytes == 112


def test_what_only_looks_like_a_collective_is_none():
    text = program(
        '%e = f32[4] add(%p, %q), metadata={op_name="jit(f)/all-to-all(x)"}',
        '%f = f32[4] add(%all-gather, %q), metadata={op_name="x all-reduce(y)"}',
        "%all-reduce.2 = f32[4] get-tuple-element(%all-reduce.1), index=0",
        '%g = f32[4] custom-call(%p), custom_call_target=" all-gather("',
        '%h = f32[4] copy(%p), metadata={op_name="to_apply=%inner"}',
        before=LOOPS,
    )
    found = sharding.collectives(text)
    assert (found.found, found.counts, found.bytes) == ((), {}, 0)
    assert str(found) == "no collectives"


TRIPS = 'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0"}}'
ESCAPED = r'backend_config="{\"known_trip_count\":{\"n\":\"3\"}}"'


@pytest.mark.parametrize("trips", [TRIPS, ESCAPED])
def test_a_loop_counts_as_often_as_it_runs(trips):
    twice = f"%v = f32[8] while(%p), condition=%no, body=%outer, {trips}"
    text = program(twice, before=LOOPS.replace("INNER", trips))
    found = sharding.collectives(text)
    # The inner loop asks four times each of the three times that it runs.
    assert found.counts == {"all_gather": 9, "all_reduce": 12}
    assert found.bytes == 9 * 28 + 12 * 56
    assert found.in_loops == 2
    assert "all_gather: 9 x 28 bytes, groups of 8, in a loop, from f/dot" in str(found)


def test_a_loop_of_unknown_length_counts_as_endless():
    text = program("%v = f32[8] while(%p), condition=%no, body=%inner", before=LOOPS)
    found = sharding.collectives(text)
    assert found.counts == {"all_gather": math.inf}
    assert found.bytes == math.inf
    with pytest.raises(AssertionError, match="wanted 1 all_gather, found inf"):
        sharding.assert_collectives(text, all_gather=1)
    alone = text.replace("[1,8]<=[8]", "[8,1]<=[8]")
    assert sharding.collectives(alone).bytes == 0


def test_what_is_in_a_loop_is_so_for_those_who_call_it():
    before = LOOPS.replace("INNER", TRIPS)
    text = program("%v = f32[8] call(%p), to_apply=%outer", before=before)
    found = sharding.collectives(text)
    assert found.counts == {"all_gather": 3, "all_reduce": 4}
    assert found.in_loops == 2


def test_calls_and_branches_count_each_time_they_are_named():
    text = program(
        "%a = f32[8] call(%p), to_apply=%inner",
        "%b = f32[8] fusion(%p), kind=kLoop, calls=%inner",
        "%c = f32[8] conditional(%p), branch_computations={%inner, %asks}",
        "%d = f32[8] conditional(%p), true_computation=%inner, false_computation=%x",
        "%e = ((f32[8]), f32[8]) async-start(%p), calls=%inner",
        "%f = f32[8] async-done(%e), calls=%inner",
        before=LOOPS,
    )
    found = sharding.collectives(text)
    assert found.counts == {"all_gather": 5, "all_reduce": 1}
    assert found.in_loops == 0


def test_what_the_entry_does_not_reach_is_not_counted():
    assert (
        sharding.collectives(program("%a = f32[8] copy(%p)", before=LOOPS)).bytes == 0
    )


def mesh(kind, shape=(8,)):
    kind = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}[kind]
    names = ("d", "t")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def over(where, local, before, after):
    return jax.shard_map(
        local, mesh=where, in_specs=before, out_specs=after, check_vma=False
    )


def placed(where, spec, shape=(8, 16, 32), dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(where, spec))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("axis", "size"), [("d", 4), ("t", 2), (("t", "d"), 8)])
def test_programs_over_some_axes_of_a_mesh(kind, axis, size):
    where = mesh(kind, (4, 2))

    def exchange(x):
        x = jax.lax.all_to_all(x, axis, 0, 1, tiled=True)
        return jax.lax.all_gather(x, axis, axis=0, tiled=True)

    x = placed(where, P(None, axis))
    found = sharding.collectives(over(where, exchange, P(None, axis), P()), x)
    assert found.counts == {"all_to_all": 1, "all_gather": 1}
    assert {each.group_size for each in found.found} == {size}
    whole, share = 8 * 16 * 32 * 4, (size - 1) / size
    assert found.bytes_by_kind == {
        "all_to_all": whole / size * share,
        "all_gather": whole * share,
    }
    assert "shard_map/all_to_all" in found.found[0].op_name


@pytest.mark.parametrize("kind", KINDS)
def test_sums_permutations_and_loops_of_a_program(kind):
    where = mesh(kind)
    around = [(i, (i + 1) % 8) for i in range(8)]

    def body(_, x):
        return jax.lax.ppermute(x * 2, "d", around)

    def local(x):
        x = jax.lax.fori_loop(0, 5, body, x)
        return jax.lax.psum_scatter(x, "d", tiled=True) + jax.lax.psum(x[0, 0], "d")

    found = sharding.collectives(
        over(where, local, P(None, "d"), P(None, "d")), placed(where, P(None, "d"))
    )
    block = 8 * 2 * 32 * 4
    assert found.bytes_by_kind == {
        "all_reduce": 2 * 32 * 4 * 7 / 8,
        "reduce_scatter": block / 8 * 7,
        "collective_permute": 5 * block,
    }
    assert found.counts["collective_permute"] == 5
    assert found.in_loops == 1


def test_what_the_compiler_puts_in_is_found_too():
    where = mesh("auto")

    def mean(x):
        return x - x.mean()

    step, x = jax.jit(mean), placed(where, P("d"))
    lowered = step.lower(x)
    for form in (lowered, lowered.compile(), lowered.compile().as_text()):
        assert sharding.collectives(form).counts == {"all_reduce": 1}
    for form in (step, mean):
        assert sharding.collectives(form, x=x).bytes == 2 * 4 * 7 / 8


def test_halves_of_a_float_are_sent_whole_on_a_cpu_unless_as_integers():
    where = mesh("auto")

    def swap(x):
        return jax.lax.all_to_all(x, "d", 0, 1, tiled=True)

    def disguised(x):
        return swap(x.view(jnp.uint16)).view(jnp.bfloat16)

    x = placed(where, P(None, "d"), dtype=jnp.bfloat16)
    plain, bits = (
        sharding.collectives(over(where, f, P(None, "d"), P("d")), x).bytes
        for f in (swap, disguised)
    )
    assert bits == 8 * 2 * 32 * 2 * 7 / 8
    assert plain == (2 * bits if jax.default_backend() == "cpu" else bits)


def test_one_device_sends_nothing():
    x = jnp.ones((4, 4))
    assert sharding.assert_collectives(lambda x: x @ x, x, total=0).found == ()


GATHER = program(f'%a = f32[64] all-gather(%p), {EIGHT}, metadata={{op_name="f/dot"}}')


def test_an_assertion_that_holds_returns_what_was_found():
    found = sharding.assert_collectives(
        GATHER, all_gather=1, all_to_all=0, total=1, in_loops=0, bytes_at_most=224
    )
    assert found == sharding.collectives(GATHER)
    # What is not named may be there.
    assert sharding.assert_collectives(GATHER, all_to_all=0) == found


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"all_gather": 0}, "wanted 0 all_gather, found 1"),
        ({"collective_permute": 2}, "wanted 2 collective_permute, found 0"),
        ({"total": 0}, "wanted 0 collectives in all, found 1"),
        ({"in_loops": 1}, "wanted 1 collectives inside loops, found 0"),
        ({"bytes_at_most": 223}, "wanted at most 223 bytes, found 224"),
    ],
)
def test_an_assertion_that_fails_lists_what_there_is(wanted, said):
    with pytest.raises(AssertionError) as error:
        sharding.assert_collectives(GATHER, **wanted)
    assert said in str(error.value)
    assert "all_gather: 1 x 224 bytes, groups of 8, from f/dot" in str(error.value)


def test_every_kind_can_be_asserted():
    kinds = ["all_to_all", "all_gather", "all_reduce"]
    kinds += ["reduce_scatter", "collective_permute", "collective_broadcast"]
    for kind in (*kinds, "ragged_all_to_all"):
        with pytest.raises(AssertionError, match=f"wanted 7 {kind}, found"):
            sharding.assert_collectives(GATHER, **{kind: 7})


def test_other_things_are_refused():
    with pytest.raises(TypeError, match=r"needs a function, .*, got int"):
        sharding.collectives(3)
    with pytest.raises(TypeError, match="has its arguments already"):
        sharding.collectives(GATHER, 1.0)
    with pytest.raises(ValueError, match="has no ENTRY"):
        sharding.collectives("module @jit_f { func.func public @main() }")
