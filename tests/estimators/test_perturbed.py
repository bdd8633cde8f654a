"""Gradients beside the parameters: the published numbers, zero, groups, meshes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import estimators, sharding
from tests import same_bits
from tests.sharding import on_mesh

along, by_rows = estimators.perturbation_along, estimators.perturbation_by_rows
sharpness = estimators.sharpness_aware_value_and_grad
RANDOM = np.random.default_rng(0)
PARAMS = {
    "up": {"kernel": RANDOM.normal(size=(8, 16)), "bias": RANDOM.normal(size=16)},
    "down": {"kernel": RANDOM.normal(size=(16, 8))},
}
X, Y = RANDOM.normal(size=(16, 8)), RANDOM.normal(size=(16, 8))
KEY = jax.random.key(0)


def bowl(w):
    return 0.5 * (w["x"] ** 2 + 10 * w["y"] ** 2)


def network(params, x, y):
    hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
    return jnp.mean((hidden @ params["down"]["kernel"] - y) ** 2)


def waves(params):
    return sum(jnp.sum(jnp.sin(3 * x)) for x in jax.tree.leaves(params))


def cast(tree, dtype=jnp.float32):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def require_close(got, wanted, rtol=2e-6):
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        size = np.max(np.abs(b), initial=0.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(size))


def norm(tree):
    return math.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))


@functools.cache
def compiled(**settings):
    return jax.jit(functools.partial(sharpness, network, **settings))


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(jnp.float64, 1e-12), (jnp.float32, 3e-7), (jnp.bfloat16, 2**-7)],
    ids=["float64", "float32", "bfloat16"],
)
def test_the_norm_is_that_of_the_whole_tree(dtype, rtol):
    """A norm for each leaf would end at (0.989, 0.89)."""
    with jax.enable_x64(dtype == jnp.float64):
        w = cast({"x": 1.0, "y": 1.0}, dtype)
        found = sharpness(bowl, w, rho=0.1)
        assert found.grads["y"].dtype == dtype
        unit = 0.1 / math.sqrt(101)
        exact = {"x": 1 + unit, "y": 10 + 100 * unit}
        require_close(found.grads, exact, rtol)
        assert found.value == 5.5 and found.perturbed_value > 6.5
        ends = [1 - 0.01 * float(found.grads[name]) for name in "xy"]
        digits = 5e-8 if dtype == jnp.float64 else 0.01 * 11 * rtol
        np.testing.assert_allclose(ends, [0.9899005, 0.8900496], atol=digits)


def test_a_radius_of_zero_is_the_plain_gradient_bit_for_bit():
    params, batch = cast(PARAMS), cast((X, Y))

    def loss(params):
        return network(params, *batch)

    value, wanted = jax.value_and_grad(loss)(params)
    found = sharpness(network, params, *batch, rho=0)
    momentum = estimators.perturbed_value_and_grad(
        loss, params, lambda p: along(PARAMS, 0.0)
    )
    noise = estimators.perturbed_value_and_grad(
        loss, params, lambda p: by_rows(KEY, p, 0.0)
    )
    assert found.value == found.perturbed_value == momentum.value == value
    for got in (found, momentum, noise):
        jax.tree.map(np.testing.assert_array_equal, got.grads, wanted)
    traced = jax.jit(lambda rho: sharpness(network, params, *batch, rho=rho).grads)
    plain = jax.jit(jax.grad(loss))(params)
    jax.tree.map(same_bits.require, traced(0.0), plain)


def test_along_a_given_direction_one_pass_is_enough():
    params, batch = cast(PARAMS), cast((X, Y))

    def loss(params):
        return network(params, *batch)

    def along_it(params, direction):
        return estimators.perturbed_value_and_grad(
            loss, params, lambda p: along(direction, 0.3)
        )

    direction = jax.grad(loss)(params)
    wanted = compiled(rho=0.3)(params, *batch)
    got = jax.jit(along_it)(params, direction)
    require_close(got.grads, wanted.grads)
    np.testing.assert_allclose(got.value, wanted.perturbed_value, rtol=1e-6)

    def flops(function, *args):
        cost = jax.jit(function).lower(*args).compile().cost_analysis()
        return cost["flops"]

    wide = cast({"up": {"kernel": np.ones((8, 64)), "bias": np.ones(64)}})
    wide["down"] = cast({"kernel": np.ones((64, 8))})
    batch = cast((np.ones((512, 8)), np.ones((512, 8))))
    one = flops(jax.grad(network), wide, *batch)
    assert flops(along_it, wide, wide) < 1.3 * one
    two = flops(lambda *args: sharpness(network, *args).grads, wide, *batch)
    assert 1.7 * one < two < 2.3 * one


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_direction_of_any_size_has_its_length(size):
    direction = jax.tree.map(lambda x: size * x, cast(PARAMS))
    e = along(direction, 0.5)
    np.testing.assert_allclose(norm(e), 0.5, rtol=1e-6)
    require_close(e, along(PARAMS, 0.5))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_there_is_no_way_along_zero_or_what_is_not_finite(bad):
    direction = {"a": jnp.array([bad, 0.0]), "b": jnp.zeros((0, 3))}
    e = along(direction, 0.5)
    np.testing.assert_array_equal(e["a"], 0.0)
    w = {"x": jnp.array(0.0), "y": jnp.array(0.0)}
    found = sharpness(bowl, w)
    assert found.value == found.perturbed_value == found.grads["y"] == 0
    assert jax.tree.leaves(along({}, 0.5)) == []


def test_adaptive_radii_are_in_units_of_the_weights():
    params, batch = cast(PARAMS), cast((X, Y))
    found = compiled(rho=0.5, adaptive=True)(params, *batch)
    g = jax.grad(network)(params, *batch)
    scaled = jax.tree.map(lambda w, g: np.abs(w) * g, PARAMS, g)
    e = jax.tree.map(lambda w, s: 0.5 / norm(scaled) * np.abs(w) * s, PARAMS, scaled)
    there = cast(jax.tree.map(np.add, PARAMS, e))
    require_close(found.grads, jax.grad(network)(there, *batch))


def test_half_precision_is_measured_in_float32_and_rounded_where_the_loss_is():
    """300 entries of 0.01 have the norm 0.173; in bfloat16 the sum stops growing."""
    direction = jnp.full(300, 0.01, jnp.bfloat16)
    e = along(direction, 1.0)
    assert e.dtype == jnp.float32
    np.testing.assert_allclose(e, 1 / math.sqrt(300), rtol=1e-6)
    # A step of 2^-10 from 1 is lost, one of 2^-7 is the next number.
    for small, wanted in ((2.0**-10, 1.0), (2.0**-7, 1 + 2.0**-7)):
        found = estimators.perturbed_value_and_grad(
            jnp.sum, jnp.ones(1, jnp.bfloat16), lambda w, e=small: jnp.full(1, e)
        )
        assert found.value == wanted
        assert found.grads.dtype == jnp.bfloat16


def test_what_else_the_loss_returns_is_of_the_first_pass():
    def loss(w):
        return bowl(w), {"seen": w}

    w = cast({"x": 1.0, "y": 1.0})
    found = sharpness(loss, w, has_aux=True)
    assert found.aux["seen"] == w
    assert sharpness(bowl, w).aux is None
    beside = estimators.perturbed_value_and_grad(
        loss, w, lambda w: cast({"x": 1.0, "y": 0.0}), has_aux=True
    )
    assert beside.aux["seen"]["x"] == 2.0 and beside.value == 7.0


def test_groups_climb_each_by_its_own_gradient():
    params, batch = cast(PARAMS), cast((X, Y))
    found = compiled(rho=0.5, groups=4)(params, *batch)
    own = [
        compiled(rho=0.5)(params, *cast((X[i : i + 4], Y[i : i + 4])))
        for i in range(0, 16, 4)
    ]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *own)
    require_close(found[:3], mean[:3])
    whole = compiled(rho=0.5)(params, *batch)
    gap = jax.tree.map(np.subtract, found.grads, whole.grads)
    assert norm(gap) > 0.01 * norm(whole.grads)
    # Without a radius the groups say what the whole batch says.
    none = compiled(rho=0.0, groups=4)(params, *batch)
    require_close(none.grads, jax.grad(network)(params, *batch))

    def shapes(params, x):
        return jnp.mean(params["up"]["bias"]) * jnp.mean(x), x

    aux = sharpness(shapes, params, batch[0], groups=4, has_aux=True).aux
    assert aux.shape == (4, 4, 8)


@on_mesh.BOTH
@pytest.mark.parametrize("groups", [1, 8])
def test_with_a_cut_batch_gradients_are_those_of_one_device(axis_type, groups):
    params, batch = cast(PARAMS), cast((X, Y))
    wanted = compiled(rho=0.5, groups=groups)(params, *batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        got = compiled(rho=0.5, groups=groups)(params, *batch)
        require_close(got, wanted, 1e-5)
        assert all(g.sharding.is_fully_replicated for g in jax.tree.leaves(got.grads))
        sent = sharding.collectives(compiled(rho=0.5, groups=groups), params, *batch)
    # The first pass of a device's own group asks no other device.
    size = sum(x.size for x in jax.tree.leaves(PARAMS))
    assert sent.bytes < (1.1 if groups == 8 else 2.2) * 4 * 2 * size


@on_mesh.BOTH
def test_with_cut_weights_gradients_are_those_of_one_device(axis_type):
    step = jax.jit(functools.partial(sharpness, waves, rho=0.5, adaptive=True))
    params = cast(PARAMS)
    wanted = step(params)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("data"))
        got = step(jax.device_put(params, place))
        require_close(got, wanted)
        for g in jax.tree.leaves(got.grads):
            assert g.sharding.is_equivalent_to(place, g.ndim)


def test_noise_is_as_large_as_the_row_that_it_disturbs():
    scales = np.array([0.0, 1.0, 4.0])
    params = cast(
        {
            "layers": {"kernel": np.ones((2, 4000, 3)) * scales * [[[1]], [[10]]]},
            "norm": {"scale": np.ones((3, 4))},
            "up": {"kernel": np.ones((4, 3)), "bias": np.ones(3)},
        }
    )
    e = by_rows(KEY, params, 0.1)
    assert jax.tree.structure(e) == jax.tree.structure(params)
    spread = np.std(e["layers"]["kernel"], axis=1)
    wanted = 0.1 * np.outer([1, 10], scales)
    # Four standard deviations of a spread of 4000 draws.
    np.testing.assert_allclose(spread, wanted, rtol=4 / math.sqrt(8000))
    for still in (e["norm"]["scale"], e["up"]["bias"]):
        np.testing.assert_array_equal(still, 0)
    half = by_rows(KEY, cast(params, jnp.bfloat16), 0.1)
    assert half["up"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(half["up"]["kernel"], e["up"]["kernel"])


@on_mesh.BOTH
def test_noise_does_not_depend_on_the_placement(axis_type):
    draw = jax.jit(lambda w: by_rows(KEY, w, 0.1))
    params = cast({"up": {"kernel": PARAMS["up"]["kernel"]}})
    wanted = draw(params)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        for spec in (PartitionSpec("data"), PartitionSpec(None, "data")):
            placed = jax.device_put(params, NamedSharding(mesh, spec))
            require_close(draw(placed), wanted)


def test_an_adapter_is_differentiated_at_the_disturbed_merged_weight():
    w, x = cast(RANDOM.normal(size=(6, 4))), cast(RANDOM.normal(size=(5, 6)))
    adapter = cast((RANDOM.normal(size=(6, 2)), RANDOM.normal(size=(2, 4))))

    def loss(adapter, w):
        a, b = adapter
        return jnp.sum(jnp.sin(x @ (w + a @ b)))

    a, b = adapter
    e = by_rows(KEY, w + a @ b, 0.3)
    slope = x.T @ jnp.cos(x @ (w + a @ b + e))
    got = jax.grad(loss)(adapter, w + e)
    require_close(got, (slope @ b.T, a.T @ slope))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: along(w, -0.1), r"perturbation_along: rho must be .* got -0\.1"),
        (lambda w: along(w, math.nan), "rho must be 0 or more, got nan"),
        (lambda w: by_rows(KEY, w, -1), "perturbation_by_rows: sigma .* got -1"),
        (lambda w: sharpness(bowl, w, groups=0), "groups must be .* got 0"),
        (lambda w: sharpness(bowl, w, groups=2), "groups=2 cut the batch, .* none"),
        (
            lambda w: sharpness(bowl, w, {"x": jnp.ones((6, 2))}, groups=4),
            r"groups=4 do not divide .* '0/x' of shape \(6, 2\)",
        ),
        (
            lambda w: estimators.perturbed_value_and_grad(
                bowl, w, lambda w: {**w, "y": jnp.ones(3)}
            ),
            r"leaf 'y' has shape \(\) in the parameters and \(3,\) in the pert",
        ),
        (
            lambda w: estimators.perturbed_value_and_grad(
                bowl, w, lambda w: {"x": w["x"]}
            ),
            r"leaf 'y' has shape \(\) in the parameters and none in the pert",
        ),
    ],
)
def test_what_makes_no_sense_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(cast({"x": 1.0, "y": 1.0}))
