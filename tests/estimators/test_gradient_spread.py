"""Gradients of single examples about their mean: numbers, layers, memory, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import estimators

RANDOM = np.random.default_rng(0)
PARAMS = {"bias": RANDOM.normal(size=4), "kernel": RANDOM.normal(size=(6, 4))}
X, Y = RANDOM.normal(size=(8, 4, 6)), RANDOM.normal(size=(8, 4, 4))
TRACES = []


def layer(params, example):
    x, y = example
    return jnp.sum((jnp.tanh(x @ params["kernel"] + params["bias"]) - y) ** 2)


def cast(tree, dtype=jnp.float32):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


@functools.partial(jax.jit, static_argnames="along")
def statistics(params, rows, count, along=True):
    TRACES.append(1)
    return estimators.gradient_statistics(layer, params, rows, count=count, along=along)


def wanted(count):
    """The numbers of the first microbatches, from all gradients at once."""
    rows = [jnp.asarray(x[:count].reshape(-1, x.shape[-1])) for x in (X, Y)]
    values, grads = jax.vmap(jax.value_and_grad(layer), (None, 0))(cast(PARAMS), rows)
    g = np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(grads)], 1)
    g = g.astype(np.float64)
    mean = g.mean(0)
    along = np.var(g @ mean, ddof=1) / (mean @ mean)
    return values.mean(), mean, mean @ mean, g.var(0, ddof=1).sum(), along, len(g)


def test_one_program_measures_every_number_of_microbatches():
    TRACES.clear()
    for count in (1, 2, 5, 8):
        found = statistics(cast(PARAMS), cast((X, Y)), count)
        flat = np.concatenate([x.ravel() for x in jax.tree.leaves(found.grads)])
        got = (found.value, flat, *found[2:])
        for one, other in zip(got, wanted(count), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
    beyond = statistics(cast(PARAMS), cast((X, Y)), 9)
    np.testing.assert_array_equal(beyond.variance, found.variance)
    assert len(TRACES) == 1


def test_without_a_count_all_count_and_along_costs_nothing():
    found = estimators.gradient_statistics(layer, cast(PARAMS), cast((X, Y)))
    np.testing.assert_allclose(found.variance, wanted(8)[3], rtol=2e-5)
    assert np.isnan(found.along) and found.count == 32


def test_what_layers_have_in_common_counts():
    """A sum of variances of layers, as in the authors' code, is near 2."""
    z, w = RANDOM.normal(size=(2, 1000))
    z = z - z.mean()
    a, b = 1 + z, 1 - z + 0.022 * (w - w.mean())
    rows = jnp.stack([jnp.asarray(a), jnp.asarray(b)], 1)[None]
    found = estimators.gradient_statistics(
        lambda p, row: p["a"] * row[0] + p["b"] * row[1],
        {"a": jnp.zeros(()), "b": jnp.zeros(())},
        rows,
        along=True,
    )
    product = found.along * found.squared_norm  # Var_i <g_i, g>
    by_layer = np.var(a, ddof=1) * a.mean() ** 2 + np.var(b, ddof=1) * b.mean() ** 2
    assert 1.8 < by_layer < 2.2
    np.testing.assert_allclose(product, np.var(a + b, ddof=1), rtol=1e-3)
    assert product < 6e-4


@jax.jit
def moments_of_draws(rows):
    """Squared norm and variance of each draw (draws, n, d)."""

    def one(rows):
        moments = estimators.add_gradients(
            estimators.no_gradients(jnp.zeros(rows.shape[-1])), rows
        )
        return moments.squared_norm, moments.variance

    return jax.vmap(one)(rows)


@pytest.mark.parametrize(("n", "ratio"), [(16, 6.17), (64, 8.63), (256, 9.62)])
def test_the_squared_norm_of_a_mean_is_too_large_by_its_noise(n, ratio):
    """A true ratio of 10, measured: below it, unless the noise is taken out."""
    d, draws = 500, 40
    noise = np.random.default_rng(n).normal(size=(draws, n, d))
    gradient = np.full(d, d**-0.5)
    square, variance = map(
        np.asarray, moments_of_draws(gradient + (10 / d) ** 0.5 * noise)
    )
    np.testing.assert_allclose(np.mean(variance / square), ratio, rtol=0.03)
    debiased = np.mean(variance) / np.mean(square - variance / n)
    np.testing.assert_allclose(debiased, 10, rtol=0.03)
    square, variance = map(np.asarray, moments_of_draws(noise))
    np.testing.assert_allclose(np.mean(variance / square), n, rtol=0.03)


def test_a_spread_far_below_the_mean_is_found():
    """Of squares in float32, whose difference this is, nothing would be left."""
    rows = (1e3 + 1e-2 * RANDOM.normal(size=(64, 50))).astype(np.float32)
    moments = estimators.no_gradients(jnp.zeros(50))
    for part in np.split(rows, 16):
        moments = estimators.add_gradients(moments, jnp.asarray(part))
    exact = rows.astype(np.float64).var(0, ddof=1).sum()
    np.testing.assert_allclose(moments.variance, exact, rtol=0.02)


def test_means_of_microbatches_tell_the_variance_of_examples():
    rows = RANDOM.normal(size=(400, 8, 50)).astype(np.float32)
    moments = estimators.add_gradients(
        estimators.no_gradients(jnp.zeros(50)), jnp.asarray(rows.mean(1))
    )
    np.testing.assert_allclose(8 * moments.variance, 50, rtol=0.03)


def test_the_memory_is_that_of_one_microbatch():
    def temporaries(k):
        rows = [jax.ShapeDtypeStruct((k, 4, size), jnp.float32) for size in (600, 40)]
        shapes = {"kernel": (600, 40), "bias": (40,)}
        params = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32)
            for name, shape in shapes.items()
        }
        program = jax.jit(functools.partial(estimators.gradient_statistics, layer))
        compiled = program.lower(params, rows, count=1).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Four gradients and the few copies of them that a loop keeps; not 128 gradients.
    parameters = 4 * 601 * 40
    assert temporaries(32) < temporaries(2) + 0.1 * parameters
    assert temporaries(32) < 20 * parameters


def test_half_precision_is_summed_in_float32():
    params = cast(PARAMS, jnp.bfloat16)
    found = statistics(params, cast((X, Y), jnp.bfloat16), 8)
    assert {g.dtype for g in jax.tree.leaves(found.grads)} == {jnp.dtype(jnp.bfloat16)}
    assert {found.squared_norm.dtype, found.variance.dtype} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found.variance, wanted(8)[3], rtol=0.05)
    np.testing.assert_allclose(found.along, wanted(8)[4], rtol=0.1)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_on_a_mesh_examples_lie_along_the_devices(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(None, "data"))
        rows = jax.device_put(cast((X, Y)), place)
        params = jax.device_put(cast(PARAMS), NamedSharding(mesh, PartitionSpec()))
        found = jax.block_until_ready(statistics(params, rows, 5))
    for one, other in zip(found[2:], wanted(5)[2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5)


@pytest.mark.parametrize(
    ("rows", "more", "error", "said"),
    [
        (jnp.ones(3), {}, ValueError, r"shape \(microbatches, examples, \.\.\.\)"),
        (jnp.ones((0, 3, 2)), {}, ValueError, r"got the shapes \{'': \(0, 3, 2\)\}"),
        ([jnp.ones((2, 3)), jnp.ones((2, 4))], {}, ValueError, "and the same"),
        (jnp.ones((2, 3, 2)), {"count": 0}, ValueError, "from 1 to the 2 micro.* 0"),
        (jnp.ones((2, 3, 2)), {"count": 3}, ValueError, "from 1 to the 2 micro.* 3"),
        (jnp.ones((2, 3, 2, 2)), {}, TypeError, r"must be one number, got the shape"),
    ],
)
def test_what_makes_no_sense_is_refused(rows, more, error, said):
    with pytest.raises(error, match=said):
        estimators.gradient_statistics(
            lambda p, row: jnp.sum(p * jnp.asarray(row), 0), jnp.ones(2), rows, **more
        )


def test_one_gradient_has_no_variance():
    moments = estimators.add_gradients(
        estimators.no_gradients(jnp.zeros(2)), jnp.ones((1, 2))
    )
    assert np.isnan(moments.variance) and moments.squared_norm == 2
