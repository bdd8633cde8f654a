"""Kernels over a mesh of eight devices: values, placement, collectives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import kernels, sharding

KERNEL = kernels.newton_schulz
# Float32 rounding times the slope of the iteration at zero, 485.
ROUNDING = 485 * 2e-7
LINE = (None, "x", None), (None, None, "x"), ("x", None, None), (None, None, None)


@functools.cache
def mesh(kind, shape=(8,)):
    kind = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}[kind]
    names = ("x",) if len(shape) == 1 else ("d", "t")
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def stack(count, shape=(8, 16)):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


@functools.cache
def alone(count):
    return np.asarray(jax.jit(KERNEL)(stack(count)))


def run(kind, spec, count, axes="x", shape=(8,)):
    """Returns what the wrapped kernel gives, the argument, and the collectives."""
    where = mesh(kind, shape)
    x = jax.device_put(stack(count), NamedSharding(where, P(*spec)))
    kernel = sharding.over_axis(KERNEL, where, axes)
    with jax.set_mesh(where):
        program = jax.jit(kernel).lower(x).compile()
    return program(x), x, sharding.collectives(program).counts


@pytest.mark.parametrize("kind", ["explicit", "auto"])
@pytest.mark.parametrize(
    ("spec", "count"),
    [(spec, n) for spec in LINE for n in (8, 10) if n == 8 or not spec[0]],
)
def test_values_equal_one_device_and_placement_stays(kind, spec, count):
    got, x, _ = run(kind, spec, count)
    np.testing.assert_allclose(got, alone(count), atol=ROUNDING)
    assert got.dtype == x.dtype
    if kind == "explicit":
        assert got.sharding == x.sharding


@pytest.mark.parametrize("spec", LINE[:2], ids=str)
@pytest.mark.parametrize("count", [1, 8, 10])
def test_a_stack_sharded_inside_its_matrices_costs_two_all_to_alls(spec, count):
    assert run("explicit", spec, count)[2] == {"all_to_all": 2}


def test_a_stack_of_whole_matrices_costs_nothing():
    assert run("explicit", ("x", None, None), 8)[2] == {}
    assert run("auto", ("x", None, None), 8)[2] == {}


def test_on_auto_axes_the_way_in_is_one_all_to_all():
    # The way back is the compiler's choice, or that of `placed`.
    for spec in LINE[:2]:
        assert run("auto", spec, 8)[2] == {"all_to_all": 1}


@pytest.mark.parametrize("kind", ["explicit", "auto"])
def test_the_kernel_itself_communicates_nothing_however_long_it_runs(kind):
    counts = []
    where = mesh(kind)
    x = jax.device_put(stack(8), NamedSharding(where, P(None, "x")))
    for steps in (1, 9):
        kernel = sharding.over_axis(functools.partial(KERNEL, steps=steps), where, "x")
        with jax.set_mesh(where):
            counts.append(sharding.collectives(kernel, x).counts)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("spec", "count", "want"),
    [
        # Rows and columns go in one step.
        ((None, "d", "t"), 8, {"all_to_all": 2}),
        ((None, "t", "d"), 8, {"all_to_all": 2}),
        ((None, "d", "t"), 6, {"all_to_all": 2}),
        (("d", None, "t"), 8, {"all_to_all": 2}),
        ((None, ("d", "t"), None), 8, {"all_to_all": 2}),
        ((("d", "t"), None, None), 8, {}),
    ],
    ids=str,
)
def test_on_two_mesh_axes_nothing_is_replicated(spec, count, want):
    got, x, found = run("explicit", spec, count, ("d", "t"), (2, 4))
    assert found == want
    assert got.sharding == x.sharding
    np.testing.assert_allclose(got, alone(count), atol=ROUNDING)


@pytest.mark.parametrize("kind", ["explicit", "auto"])
@pytest.mark.parametrize("axes", ["d", "t", ("t", "d")])
def test_any_choice_of_mesh_axes_gives_the_same_values(kind, axes):
    for spec in ((None, "d", "t"), ("t", None, None), (None, None, None)):
        got, x, _ = run(kind, spec, 8, axes, (2, 4))
        np.testing.assert_allclose(got, alone(8), atol=ROUNDING)
        if kind == "explicit":
            assert got.sharding == x.sharding


def test_each_device_works_on_its_share_of_the_padded_stack():
    shapes = []

    def kernel(x):
        shapes.append(x.shape)
        return x

    for count, share in ((1, 1), (8, 1), (10, 2), (17, 3)):
        auto = sharding.over_axis(kernel, mesh("auto"), "x")
        got = jax.jit(auto)(stack(count))
        np.testing.assert_array_equal(got, stack(count))
        assert shapes.pop() == (share, 8, 16)


@pytest.mark.parametrize("kind", ["explicit", "auto"])
def test_a_single_matrix_is_a_stack_of_one(kind):
    kernel = sharding.over_axis(KERNEL, mesh(kind), "x")
    with jax.set_mesh(mesh(kind)):
        got = jax.jit(kernel)(stack(1)[0])
    np.testing.assert_allclose(got, alone(1)[0], atol=ROUNDING)


def test_other_ranks_are_refused():
    kernel = sharding.over_axis(KERNEL, mesh("explicit"), "x")
    for shape in ((3,), (2, 2, 3, 3)):
        with pytest.raises(ValueError, match=r"needs a stack \(k, m, n\) or a matrix"):
            kernel(jnp.ones(shape))


@pytest.mark.parametrize(
    ("axes", "said"),
    [("y", r"the mesh has axes \('x',\), got \('y',\)"), ((), r"got \(\)")],
)
def test_axes_that_the_mesh_does_not_have_are_refused(axes, said):
    with pytest.raises(ValueError, match=said):
        sharding.over_axis(KERNEL, mesh("explicit"), axes)


def test_a_mesh_of_mixed_axis_types_is_refused():
    mixed = jax.make_mesh(
        (2, 4), ("d", "t"), axis_types=(AxisType.Explicit, AxisType.Auto)
    )
    with pytest.raises(ValueError, match="mixes axis types"):
        sharding.over_axis(KERNEL, mixed, "d")


def test_wrapping_twice_with_the_same_arguments_gives_equal_kernels():
    # Equal and hashable: a jitted function that takes it as static compiles once.
    one, two = (sharding.over_axis(KERNEL, mesh("auto"), "x") for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one.reshards


@pytest.mark.parametrize("cut", [(None, "x", None), (None, None, None)], ids=str)
def test_no_device_works_on_padding_and_rests_are_kept_apart(cut):
    where, seen = mesh("explicit"), []

    def kernel(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return 2 * x

    counts, shapes = (3, 4, 10), ((8, 16), (16, 8), (8, 8))
    stacks = [
        jax.device_put(stack(k, shape), NamedSharding(where, P(*cut)))
        for k, shape in zip(counts, shapes, strict=True)
    ]
    with jax.set_mesh(where):
        got = jax.jit(sharding.over_axis(kernel, where, "x").each)(stacks)
        jax.effects_barrier()
    for x, y in zip(stacks, got, strict=True):
        np.testing.assert_array_equal(y, 2 * np.asarray(x))
        assert y.sharding == x.sharding
    # Each matrix once, and never one of zeros.
    assert sum(len(x) for x in seen) == sum(counts)
    assert all(np.any(x, axis=(1, 2)).all() for x in seen)


def test_the_rests_of_short_stacks_go_to_different_devices():
    over = sharding.spread(mesh("explicit"), "x")
    firsts = over._apart(
        [jnp.ones((3, 8, 8)), jnp.ones((3, 8, 9)), jnp.ones((2, 4, 4))]
    )
    taken = [
        {(first + i) % 8 for i in range(count)}
        for first, count in zip(firsts, (3, 3, 2), strict=True)
    ]
    assert sum(map(len, taken)) == len(set.union(*taken)) == 8


@pytest.mark.parametrize("kind", ["explicit", "auto"])
@pytest.mark.parametrize("cut", [(None, "d", "t"), (None, None, "t")], ids=str)
def test_short_stacks_of_several_shapes_go_together(kind, cut):
    # On Auto axes the ways are unseen: only the values are the same.
    where = mesh(kind, (2, 4))
    shapes = ((8, 16), (16, 8), (8, 8), (16, 16))
    stacks = [
        jax.device_put(stack(3, shape), NamedSharding(where, P(*cut)))
        for shape in shapes
    ]
    kernel = sharding.over_axis(KERNEL, where, ("d", "t"))
    with jax.set_mesh(where):
        got = jax.jit(kernel.each)(stacks)
        found = sharding.collectives(kernel.each, stacks)
    for x, y in zip(stacks, got, strict=True):
        np.testing.assert_allclose(y, KERNEL(np.asarray(x)), atol=ROUNDING)
    if kind == "explicit":
        assert all(y.sharding == x.sharding for x, y in zip(stacks, got, strict=True))
        # Twelve matrices on eight devices: twice there and back, not four times.
        kinds = {"all_to_all": 4} | ({"all_gather": 2} if cut[1] is None else {})
        assert found.counts == kinds
