"""Newton-Schulz on matrices that are never whole on any device."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import kernels, optimizers, sharding

GRAM = functools.partial(kernels.newton_schulz, form="gram")


def mesh(kind=AxisType.Explicit):
    return jax.make_mesh((4, 2), ("d", "t"), axis_types=(kind,) * 2)


def stack(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 8, 32), (2, 32, 8), (1, 16, 16)], ids=str)
@pytest.mark.parametrize("prescale", ["frobenius", "schatten", "aol"])
def test_values_equal_one_device(shape, prescale):
    kernel = functools.partial(GRAM, prescale=prescale)
    cut = P(None, None, ("d", "t")) if shape[2] >= shape[1] else P(None, ("d", "t"))
    where = mesh()
    x = jax.device_put(stack(shape), NamedSharding(where, cut))
    with jax.set_mesh(where):
        got = jax.jit(sharding.along_axis(kernel, where, ("d", "t")))(x)
    assert got.sharding.is_equivalent_to(x.sharding, 3)
    # Float32 rounding times the slope of the iteration at zero, 485.
    np.testing.assert_allclose(got, kernel(stack(shape)), atol=485 * 2e-7)


def test_the_gram_form_sums_once_and_never_gathers():
    where = mesh()
    x = jax.device_put(stack((1, 8, 32)), NamedSharding(where, P(None, None, "d")))
    with jax.set_mesh(where):
        found = sharding.collectives(sharding.along_axis(GRAM, where, "d"), x)
    assert set(found.counts) == {"all_reduce"}
    # The largest entry, the norm, and one Gram matrix of 8 x 8.
    largest = 2 * (4 * 8 * 8) * 3 / 4
    assert largest <= found.bytes <= 1.1 * largest


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_muon_takes_it(kind):
    where = mesh(kind)
    g = {"up": {"kernel": stack((8, 32))}}
    place = {"up": {"kernel": NamedSharding(where, P("t", "d"))}}
    put = jax.tree.map(jax.device_put, g, place)
    kernel = sharding.along_axis(kernels.newton_schulz, where, "d")
    tx = sharding.placed(optimizers.muon(0.1, orthogonalize=kernel), place)
    bare = optimizers.muon(0.1)
    with jax.set_mesh(where):
        got, _ = jax.jit(tx.update)(put, tx.init(put), put)
    want, _ = jax.jit(bare.update)(g, bare.init(g), g)
    np.testing.assert_allclose(
        got["up"]["kernel"], want["up"]["kernel"], atol=0.2 * 485 * 2e-7
    )


def test_a_side_that_does_not_divide_is_refused():
    kernel = sharding.along_axis(kernels.newton_schulz, mesh(), "d")
    with pytest.raises(ValueError, match=r"4 devices along \('d',\).*\(5, 6\).*over_a"):
        kernel(stack((1, 5, 6)))
    with pytest.raises(ValueError, match=r"along_axis: .* got \('x',\)"):
        sharding.along_axis(kernels.newton_schulz, mesh(), "x")
