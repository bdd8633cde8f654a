"""A plan is what the compiled program turns out to need."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from optlab import catalog, inspection, kernels, optimizers, sharding
from optlab.lab import decoders

MESHES = {"fsdp=8": {"fsdp": 8}, "fsdp=4,tp=2": {"fsdp": 4, "tp": 2}}
MLP = {"layer_0": (64, 256), "layer_1": (256, 256), "layer_2": (256, 16)}
DECODER = {"d_model": 128, "heads": 4, "kv_heads": 2, "d_ff": 512, "vocab": 256}


def leaf(mesh, shape, *spec):
    place = NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)


def model(name, sizes, mesh):
    if name == "mlp":
        cut = tuple(sizes)
        return {
            name: {"kernel": leaf(mesh, mn, *cut), "bias": leaf(mesh, mn[1:])}
            for name, mn in MLP.items()
        }
    params = decoders.Decoder(layers=int(name[-1]), **DECODER).params()
    specs = decoders.places(params, sizes)
    return jax.tree.map(lambda x, spec: leaf(mesh, x.shape, *spec), params, specs)


def optimizer(name, mesh):
    row = catalog.get(name)
    given = dict(row.defaults)
    if row.on_mesh is not None:
        given |= row.on_mesh(mesh, mesh.axis_names)
    return row.build(**given)


def both(name, what, mesh):
    """Returns what is planned on an abstract mesh and what is counted on a real one."""
    sizes = MESHES[mesh]
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    real = jax.make_mesh(tuple(sizes.values()), tuple(sizes))
    planned = inspection.plan(
        optimizer(name, abstract), model(what, sizes, abstract), platform="cpu"
    )
    found = inspection.measure(optimizer(name, real), model(what, sizes, real))
    return planned, found


slow = pytest.mark.slow
CASES = [
    pytest.param("adamw", "mlp", "fsdp=8"),
    pytest.param("muon", "mlp", "fsdp=4,tp=2"),
    *(
        pytest.param(name, what, mesh, marks=slow)
        for name in ("adamw", "muon", "soap")
        for what in ("decoder_2", "decoder_4", "mlp")
        for mesh in MESHES
    ),
]


@pytest.mark.parametrize(("name", "what", "mesh"), CASES)
def test_a_plan_agrees_with_the_compiled_program(name, what, mesh):
    planned, found = both(name, what, mesh)
    assert sum(planned.state_bytes.values()) == pytest.approx(
        found.state_bytes, rel=0.02
    )
    assert planned.most_flops == pytest.approx(found.flops, rel=0.02)
    assert planned.collectives.counts == found.collectives.counts
    assert planned.collectives.bytes == found.collectives.bytes
    # The compiler may start on the next stack before it is done with the one before:
    # one whole matrix more or less, of five. Its scalars are below a kilobyte.
    far = 0.25 if name == "muon" and what != "mlp" else 0.10
    assert planned.temporary_bytes == pytest.approx(
        found.temporary_bytes, rel=far, abs=1024
    )


LINE = AbstractMesh((8,), ("fsdp",))


def test_adam_keeps_two_moments_and_makes_sixteen_numbers_of_each_entry():
    params = {"w": leaf(LINE, (64, 32), "fsdp"), "b": leaf(LINE, (32,))}
    found = inspection.plan(optimizers.adamw(1e-3), params)
    held = 4 * (8 * 32 + 32)
    assert (found.parameters, found.devices) == (64 * 32 + 32, 8)
    assert found.parameter_bytes == held
    assert found.state_bytes["mu"] == found.state_bytes["nu"] == held
    # Scalars of the bias corrections aside.
    assert found.flops == pytest.approx(16 * (8 * 32 + 32), abs=32)
    assert (found.temporary_bytes, found.collectives.found) == (0, ())


@functools.cache
def stack_plan(count, m, n):
    kernel = sharding.over_axis(kernels.newton_schulz, LINE, "fsdp")
    tx = optimizers.muon(0.1, orthogonalize=kernel)
    params = {"up": {"kernel": leaf(LINE, (count, m, n), None, "fsdp")}}
    return inspection.plan(tx, params, platform="cpu")


def test_muon_does_its_share_of_the_iteration():
    work = kernels.polar_plan((64, 256), platform="cpu").flops
    # Momentum, scaling and application are not of the iteration.
    assert stack_plan(16, 64, 256).flops == pytest.approx(2 * work, rel=0.04)
    assert stack_plan(32, 64, 256).flops == pytest.approx(4 * work, rel=0.04)


def test_what_is_sent_is_the_least_that_does():
    sent = stack_plan(16, 64, 256).collectives
    assert sent.counts == {"all_to_all": 2}
    assert sent.bytes == 2 * 4 * 16 * 64 * 256 / 8 * 7 / 8
    way = sharding.cheapest(
        (16, 64, 256), P(None, "fsdp"), LINE, flops=1e12, itemsize=4
    ).best
    assert (way.name, way.bytes) == ("layer-sharded", sent.bytes)


def test_a_refresh_now_and_then_is_apart_from_every_step():
    tx = optimizers.soap(1e-3, every=10)
    found = inspection.plan(tx, {"w": {"kernel": jnp.ones((32, 32))}})
    assert found.decompositions == 0
    # For both factors eigenvectors, at the first step, and QR, at every tenth.
    assert found.most_decompositions == pytest.approx(2 * (9 + 8 / 3) * 32**3)
    assert found.flops < found.most_flops
    more = found.most_flops + found.most_decompositions - found.flops
    assert found.mean_flops(10) == pytest.approx(found.flops + more / 10)


def test_a_loop_counts_as_often_as_it_runs():
    def update(updates, state, params=None):
        del params

        def body(x, _):
            return x @ x, None

        w, _ = jax.lax.scan(body, updates["w"], length=5)
        return {"w": w}, state

    tx = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    found = inspection.plan(tx, {"w": jnp.ones((8, 8))})
    assert found.flops == 5 * 2 * 8**3 + 8 * 8


def test_sums_and_moves_between_devices_outside_of_kernels_are_seen():
    def update(updates, state, params=None):
        del params
        norm = optax.tree.norm(updates)
        where = NamedSharding(jax.sharding.get_abstract_mesh(), P(None, "fsdp"))
        turned = jax.reshard(updates["w"], where)
        back = NamedSharding(jax.sharding.get_abstract_mesh(), P("fsdp"))
        return {"w": jax.reshard(2.0 * turned, back) / norm}, state

    tx = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    found = inspection.plan(tx, {"w": leaf(LINE, (64, 32), "fsdp")})
    assert found.collectives.counts == {"all_to_all": 2, "all_reduce": 1}
    held = 4 * 8 * 32
    assert found.collectives.bytes == 2 * held * 7 / 8 + 2 * 4 * 7 / 8


def test_all_kinds_of_meshes_give_one_plan():
    def on(mesh):
        params = {"up": {"kernel": leaf(mesh, (8, 16, 32), None, "fsdp")}}
        where = jax.tree.map(lambda x: x.sharding, params)
        kernel = sharding.over_axis(kernels.newton_schulz, mesh, "fsdp")
        tx = optimizers.muon(0.1, orthogonalize=kernel)
        return inspection.plan(sharding.placed(tx, where), params)

    first, *others = (
        on(LINE),
        on(jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))),
        on(jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))),
    )
    assert all(other == first for other in others)


def test_a_device_alone_has_a_plan_too():
    alone = SingleDeviceSharding(jax.devices()[0])
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=alone)
    found = inspection.plan(optax.sgd(0.1, momentum=0.9), {"w": x})
    assert (found.devices, found.state_bytes["trace"]) == (1, 64)


def test_leaves_say_their_group_and_stand_together():
    params = {
        f"block_{i}": {"up": {"kernel": leaf(LINE, (16, 32), "fsdp")}} for i in range(3)
    } | {"embed": {"embedding": leaf(LINE, (64, 16), "fsdp")}}
    for name in ("muon", "soap"):
        found = inspection.plan(optimizer(name, LINE), params)
        assert found.routing() == [
            ("block_*/up/kernel", 3, (16, 32), "matrix", str(P("fsdp")), 3 * 256),
            ("embed/embedding", 1, (64, 16), "rest", str(P("fsdp")), 512),
        ]


def test_a_policy_moves_the_state():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    params = {"w": leaf(mesh, (64, 32), None, "fsdp")}
    tx = optimizers.adamw(1e-3)
    whole = inspection.plan(tx, params).state_bytes
    zero1 = sharding.Policy(data_axis="data")
    found = inspection.plan(tx, params, policy=zero1)
    assert found.state_bytes["mu"] == whole["mu"] / 2
    assert found.collectives.counts == {"all_gather": 1}


def test_a_plan_is_printed_with_shares_and_collectives():
    lines = str(stack_plan(16, 64, 256)).splitlines()
    assert lines[0].startswith("262,144 parameters on 8 devices (fsdp=8)")
    (in_all,) = (line for line in lines if "in all" in line)
    assert "100.0%" in in_all
    assert "2 all_to_all" in lines[-1]


def test_a_mesh_that_does_not_divide_is_refused_by_the_leaf():
    with pytest.raises(ValueError, match=r"leaf 'w' .*30 does not divide"):
        inspection.plan(optimizers.adamw(1e-3), {"w": leaf(LINE, (30, 8), "fsdp")})


def test_a_bare_kernel_is_refused_by_the_leaf():
    tx = optimizers.muon(0.1)
    with pytest.raises(ValueError, match=r"'up/kernel' .* Wrap the kernel"):
        inspection.plan(tx, {"up": {"kernel": leaf(LINE, (32, 64), "fsdp")}})


def test_sizes_grow_but_nothing_is_allocated():
    # 8 billion entries on 8 devices.
    found = stack_plan(32, 8192, 32768)
    assert found.parameter_bytes == 4 * 32 * 8192 * 32768 // 8
    assert math.isclose(
        found.flops, 4 * kernels.polar_plan((8192, 32768)).flops, rel_tol=0.03
    )
