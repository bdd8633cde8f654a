"""Eigenpairs, densities and traces against dense Hessians, on one device and eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import estimators, probes
from tests.probes import net
from tests.sharding import on_mesh

K = 4
SPECTRUM = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 10.0])


def hessian(params, data=net.DATA):
    return estimators.hessian_product(net.loss, params, batches=data)


@functools.partial(jax.jit, static_argnames=("k", "which", "steps"))
def pairs(params, key, k=K, which="largest", steps=None):
    product = hessian(params)
    return probes.top_eigenpairs(product, params, key, k, which=which, steps=steps)


@functools.partial(jax.jit, static_argnames=("draws", "steps"))
def density(params, key, draws=3, steps=8):
    product = hessian(params)
    return probes.spectral_density(product, params, key, draws=draws, steps=steps)


@functools.partial(jax.jit, static_argnames="draws")
def total(params, key, draws):
    return probes.trace(hessian(params), params, key, draws=draws)


def values():
    return np.linalg.eigvalsh(net.hessian())


def diagonal(curvatures):
    return estimators.hessian_product(
        lambda w: jnp.sum(curvatures * w**2) / 2, jnp.ones(len(curvatures))
    )


def test_the_top_of_a_spectrum_is_that_of_the_dense_hessian():
    found = pairs(net.PARAMS, net.KEY)
    top = values()[-1]
    np.testing.assert_allclose(found.values, values()[::-1][:K], rtol=1e-5)
    vectors = np.stack(
        [net.flat(jax.tree.map(lambda x, i=i: x[i], found.vectors)) for i in range(K)]
    )
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(K), atol=1e-5)
    misses = vectors @ net.hessian() - np.asarray(found.values)[:, None] * vectors
    np.testing.assert_allclose(misses, 0, atol=1e-5 * top)
    assert np.all(found.residuals < 1e-5 * top)


@pytest.mark.parametrize(
    ("which", "wanted"),
    [("largest", (4, 3)), ("smallest", (-7, -2)), ("magnitude", (-7, 4))],
)
def test_either_end_of_a_spectrum_is_found(which, wanted):
    product, w = diagonal(jnp.array([3.0, -7.0, 0.0, 4.0, -2.0])), jnp.ones(5)
    find = jax.jit(
        lambda key: probes.top_eigenpairs(product, w, key, 2, which=which).values
    )
    np.testing.assert_allclose(find(net.KEY), wanted, rtol=1e-5)


def test_residuals_tell_what_has_not_converged():
    """Within each residual of its value there is an eigenvalue."""
    found = pairs(net.PARAMS, net.KEY, steps=6)
    assert found.residuals[-1] > 0.01
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.min(np.abs(values() - value)) <= residual * 1.001
    gaps = np.abs(found.values - values()[::-1][:K])
    assert gaps[0] < 1e-2 < gaps[-1]


def test_eigenvalues_that_occur_more_than_once_are_all_found():
    """From one vector alone Lanczos sees one direction of each eigenvalue."""
    twice = jnp.array([7.0, 7.0, 7.0, 1.0, 1.0, -2.0])
    find = jax.jit(
        lambda key: probes.top_eigenpairs(diagonal(twice), jnp.ones(6), key, 6)
    )
    found = find(net.KEY)
    np.testing.assert_allclose(found.values, twice, atol=1e-5)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(6), atol=1e-5)
    zero = jax.jit(
        lambda key: probes.top_eigenpairs(diagonal(0 * twice), jnp.ones(6), key, 2)
    )
    np.testing.assert_array_equal(zero(net.KEY).values, 0)


def test_an_old_eigenvector_saves_steps():
    found = pairs(net.PARAMS, net.KEY)
    near = jax.tree.map(lambda x: x[0], found.vectors)

    @jax.jit
    def sharpness(start, key):
        product = hessian(net.PARAMS)
        return probes.top_eigenpairs(product, near, key, steps=2, start=start)

    np.testing.assert_allclose(sharpness(near, net.KEY).values, values()[-1], rtol=1e-6)
    afar = sharpness(net.like(np.ones(net.SIZE)), net.KEY)
    assert afar.values[0] < 0.99 * values()[-1]


def test_a_quadrature_has_the_moments_of_the_spectrum():
    found = density(net.PARAMS, net.KEY, draws=40)
    np.testing.assert_allclose(np.sum(found.weights, 1), 1, rtol=1e-5)
    for power in (1, 2, 3):
        rows = np.sum(found.weights * found.nodes**power, 1)
        error = np.std(rows, ddof=1) / np.sqrt(len(rows))
        assert abs(np.mean(rows) - np.mean(values() ** power)) < 3.5 * error


def test_of_a_diagonal_hessian_one_draw_has_the_moments_exactly():
    """Six signs see diag(1, 2, 3, 4, 5, 10) alike: the quadrature of three products."""
    find = jax.jit(
        lambda key: probes.spectral_density(
            diagonal(SPECTRUM), jnp.ones(6), key, draws=1, steps=3
        )
    )
    nodes, weights, grid, shown = find(net.KEY)
    np.testing.assert_allclose(nodes[0], [1.4222904, 4.15526202, 9.9611505], rtol=1e-5)
    np.testing.assert_allclose(weights[0], [0.360215, 0.468259, 0.171526], rtol=1e-4)
    np.testing.assert_allclose(np.sum(weights * nodes), 25 / 6, rtol=1e-5)
    np.testing.assert_allclose(np.sum(weights * nodes**5), 17404.1667, rtol=1e-4)
    area = np.sum(shown) * (grid[1] - grid[0])
    np.testing.assert_allclose(area, 1, rtol=1e-5)
    mean = np.sum(grid * shown) * (grid[1] - grid[0])
    np.testing.assert_allclose(mean, 25 / 6, rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_spectra_of_any_size_have_a_density_of_area_one(size):
    find = jax.jit(
        lambda s: probes.spectral_density(
            lambda v: s * SPECTRUM * v, jnp.ones(6), net.KEY, draws=1, steps=3
        )
    )
    found = find(size)
    span = np.asarray(found.grid, np.float64)
    np.testing.assert_allclose(np.sum(found.weights), 1, rtol=1e-5)
    area = np.sum(np.asarray(found.density, np.float64)) * (span[1] - span[0])
    np.testing.assert_allclose(area, 1, rtol=1e-3)


def test_the_trace_is_within_its_standard_error():
    found = total(net.PARAMS, net.KEY, draws=30)
    assert abs(found.value - np.trace(net.hessian())) < 3 * found.standard_error
    # 2 (||H||_F^2 - ||diag||^2) over the draws is the variance of the mean.
    dense = net.hessian()
    spread = np.sqrt(2 * (np.sum(dense**2) - np.sum(np.diag(dense) ** 2)) / 30)
    np.testing.assert_allclose(found.standard_error, spread, rtol=0.3)


def test_the_published_numbers_of_two_parabolas():
    product, w = diagonal(jnp.array([1.0, 10.0])), jnp.ones(2)

    @jax.jit
    def numbers(key, v):
        return (
            probes.top_eigenpairs(product, w, key).values[0],
            probes.trace(product, w, key, draws=2).value,
            probes.directional_sharpness(product, v),
        )

    np.testing.assert_allclose(numbers(net.KEY, w), (10, 11, 5.5), rtol=1e-6)
    for v, wanted in ((1e30 * w, 5.5), (1e-30 * w, 5.5), (0 * w, 0)):
        np.testing.assert_allclose(numbers(net.KEY, v)[2], wanted, rtol=1e-6)


def test_an_iterator_over_batches_gives_the_numbers_of_the_stack():
    def batches():
        for i in range(net.BATCHES):
            yield jax.tree.map(lambda x, i=i: x[i], net.DATA)

    product = estimators.hessian_product(net.loss, net.PARAMS, batches=batches)
    found = probes.top_eigenpairs(product, net.PARAMS, net.KEY, K, steps=6)
    wanted = pairs(net.PARAMS, net.KEY, steps=6)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-4)
    np.testing.assert_allclose(found.residuals, wanted.residuals, rtol=1e-3, atol=1e-3)
    found = probes.spectral_density(product, net.PARAMS, net.KEY, draws=3, steps=8)
    wanted = density(net.PARAMS, net.KEY)
    np.testing.assert_allclose(found.nodes, wanted.nodes, rtol=1e-3, atol=1e-3)
    found = probes.trace(product, net.PARAMS, net.KEY, draws=30)
    np.testing.assert_allclose(found, total(net.PARAMS, net.KEY, draws=30), rtol=1e-4)


@on_mesh.BOTH
def test_on_a_mesh_the_numbers_are_those_of_one_device(axis_type):
    mesh = on_mesh.mesh_of(axis_type)
    kinds = {name: on_mesh.KINDS[name] for name in ("dense", "bias", "temperature")}
    params = on_mesh.tree_of(mesh, kinds)
    alone = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    wanted = jax.device_get(measured(alone, net.KEY))
    with jax.set_mesh(mesh):
        pair, *got = jax.block_until_ready(measured(params, net.KEY))
        if axis_type == jax.sharding.AxisType.Explicit:
            for v, p in zip(*map(jax.tree.leaves, (pair.vectors, params)), strict=True):
                rows = NamedSharding(mesh, PartitionSpec(None, *p.sharding.spec))
                assert v.sharding.is_equivalent_to(rows, v.ndim)
        got = jax.device_get([pair.values, *got])
    for a, b in zip(
        *map(jax.tree.leaves, (got, [wanted[0].values, *wanted[1:]])), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.max(np.abs(b)))


@jax.jit
def measured(params, key):
    product = estimators.hessian_product(waves, params)
    return (
        probes.top_eigenpairs(product, params, key, steps=6),
        probes.spectral_density(product, params, key, draws=2, steps=3)[:2],
        probes.trace(product, params, key, draws=2),
        probes.directional_sharpness(product, params),
    )


def waves(params):
    """Curvature everywhere and between leaves, apart at the upper end."""
    scales = jnp.arange(1, 1 + len(jax.tree.leaves(params)))
    sums = [jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(params)]
    rough = sum(jnp.sum(jnp.cos(3 * x)) for x in jax.tree.leaves(params))
    return jnp.sum(scales * jnp.stack(sums) ** 2) / 10 + rough


def test_probes_change_no_parameters():
    before = jax.tree.map(np.array, net.PARAMS)
    pairs(net.PARAMS, net.KEY)
    density(net.PARAMS, net.KEY)
    total(net.PARAMS, net.KEY, draws=30)
    jax.tree.map(np.testing.assert_array_equal, before, net.PARAMS)


def test_another_key_gives_other_draws_and_the_same_key_the_same():
    one, again = (density(net.PARAMS, net.KEY) for _ in range(2))
    other = density(net.PARAMS, jax.random.key(1))
    np.testing.assert_array_equal(one.nodes, again.nodes)
    assert np.all(one.nodes[:, 0] != other.nodes[:, 0])


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda f: probes.top_eigenpairs(f, SPECTRUM, 0), TypeError, "typed key"),
        (lambda f: top(f, k=7), ValueError, "k must be from 1 to the 6 .* got 7"),
        (lambda f: top(f, k=0), ValueError, "got 0"),
        (lambda f: top(f, steps=0), ValueError, "steps must be 1 or more"),
        (lambda f: top(f, which="best"), ValueError, "one of .* got 'best'"),
        (
            lambda f: probes.top_eigenpairs(f, {}, net.KEY),
            ValueError,
            "30 and 0|32 and",
        ),
        (lambda f: dense(f, draws=0), ValueError, "draws must be 1 or more, got 0"),
        (lambda f: dense(f, width=0), ValueError, "width must be above 0, got 0"),
        (lambda f: dense(f, points=100), ValueError, "too coarse"),
        (
            lambda f: probes.trace(f, SPECTRUM, net.KEY, draws=1),
            ValueError,
            "2 or more",
        ),
        (lambda f: probes.trace(f, SPECTRUM, 3), TypeError, "trace: key"),
    ],
)
def test_what_makes_no_sense_is_named(call, error, said):
    with pytest.raises(error, match=said):
        call(diagonal(SPECTRUM))


def top(product, **settings):
    return probes.top_eigenpairs(product, SPECTRUM, net.KEY, **settings)


def dense(product, **settings):
    return probes.spectral_density(product, SPECTRUM, net.KEY, **settings)
