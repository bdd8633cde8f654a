"""Updates stay where the parameters are, on a mesh with Auto axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import kernels, optimizers, sharding

SPECS = [("x", None), (None, "x")]


def params(spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec(*spec))
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 8, 16)).astype(np.float32)
    tree = {str(i): {"kernel": jax.device_put(v, place)} for i, v in enumerate(values)}
    return tree, mesh


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_updates_stay_where_the_parameters_are(spec):
    tree, mesh = params(spec)
    kernel = sharding.over_axis(kernels.newton_schulz, mesh, "x")
    bare = optimizers.muon(0.1, orthogonalize=kernel)
    tx = sharding.placed(bare, jax.tree.map(lambda x: x.sharding, tree))
    step = jax.jit(tx.update)
    updates, state = step(tree, tx.init(tree), tree)
    for got, like in zip(*map(jax.tree.leaves, (updates, tree)), strict=True):
        assert got.sharding.is_equivalent_to(like.sharding, like.ndim)
    # Left alone, the compiler leaves them elsewhere.
    elsewhere, _ = jax.jit(bare.update)(tree, bare.init(tree), tree)
    like = tree["0"]["kernel"]
    left = elsewhere["0"]["kernel"].sharding
    assert not left.is_equivalent_to(like.sharding, like.ndim)
    assert jax.tree.structure(state) == jax.tree.structure(bare.init(tree))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_equal_one_device(spec):
    tree, mesh = params(spec)
    kernel = sharding.over_axis(kernels.newton_schulz, mesh, "x")
    tx = sharding.placed(
        optimizers.muon(0.1, orthogonalize=kernel),
        jax.tree.map(lambda x: x.sharding, tree),
    )
    got, _ = jax.jit(tx.update)(tree, tx.init(tree), tree)
    single = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)
    bare = optimizers.muon(0.1)
    want, _ = jax.jit(bare.update)(single, bare.init(single), single)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        # Float32 rounding times the slope of Newton-Schulz at zero, 485.
        np.testing.assert_allclose(a, b, atol=0.1 * 485 * 2e-7)


def test_hands_extra_arguments_on():
    def update(updates, state, params=None, *, scale, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda u: u * scale, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
    one = jnp.ones(2)
    tx = sharding.placed(inner, one.sharding)
    np.testing.assert_array_equal(tx.update(one, (), scale=0.5)[0], 0.5)
    plain = sharding.placed(optax.scale(2.0), one.sharding)
    updates, _ = plain.update(one, plain.init(one), value=1.0)
    np.testing.assert_array_equal(updates, 2)
