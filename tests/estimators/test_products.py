"""Products with curvature: dense matrices, data in parts, meshes, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from optlab import estimators
from tests.probes import net
from tests.sharding import on_mesh

V = net.like(np.random.default_rng(1).normal(size=net.SIZE))


def close(got, wanted, rtol=1e-5):
    size = np.max(np.abs(wanted))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rtol * size)


@jax.jit
def on_all(params, v):
    def whole(params):
        return net.loss(params, net.WHOLE)

    return estimators.hessian_product(whole, params)(v)


@jax.jit
def in_parts(params, v, data):
    return estimators.hessian_product(net.loss, params, batches=data)(v)


@jax.jit
def gauss_newton(params, v, data):
    made = estimators.gauss_newton_product
    return made(net.model, net.error, params, batches=data)(v)


def test_a_product_is_that_of_the_dense_hessian():
    close(net.flat(on_all(net.PARAMS, V)), net.hessian() @ net.flat(V))


def test_a_data_set_in_parts_has_the_product_of_the_whole():
    wanted = net.hessian() @ net.flat(V)
    close(net.flat(in_parts(net.PARAMS, V, net.DATA)), wanted)
    opened = []

    def batches():
        opened.append(1)
        for sizes in ((0, 20), (20, 27), (27, 32)):  # Of unequal lengths.
            yield jax.tree.map(lambda x, s=sizes: x[slice(*s)], net.WHOLE)

    product = estimators.hessian_product(net.loss, net.PARAMS, batches=batches)
    assert product.on_host
    close(net.flat(product(V)), wanted)
    close(net.flat(product(product(V))), net.hessian() @ wanted)
    assert len(opened) == 3


def test_the_memory_of_a_product_is_that_of_one_batch():
    def temporaries(k):
        data = jax.tree.map(lambda x: jnp.zeros((k, 4096, *x.shape[2:])), net.DATA)
        done = in_parts.lower(net.PARAMS, V, data).compile()
        return done.memory_analysis().temp_size_in_bytes

    # Eight bytes for each of the batch's hidden numbers, at least.
    assert temporaries(32) < temporaries(2) + 4096


def test_gauss_newton_is_the_jacobian_around_the_curvature_of_the_loss():
    flat, back = ravel_pytree(net.PARAMS)

    @jax.jit
    def matrix(flat):
        def outputs(w):
            return net.model(back(w), net.WHOLE).ravel()

        def error(z):
            return net.error(z.reshape(-1, 2), net.WHOLE)

        jacobian = jax.jacfwd(outputs)(flat)
        return jacobian.T @ jax.hessian(error)(outputs(flat)) @ jacobian

    dense = np.asarray(matrix(flat), np.float64)
    close(net.flat(gauss_newton(net.PARAMS, V, net.DATA)), dense @ net.flat(V))
    assert np.linalg.eigvalsh(dense).min() > -1e-5 < np.linalg.norm(dense)
    # The Hessian of this net has more than that.
    assert np.linalg.eigvalsh(net.hessian()).min() < -0.01

    def at_once(params):
        return estimators.gauss_newton_product(
            lambda p: net.model(p, net.WHOLE), lambda z: net.error(z, net.WHOLE), params
        )(V)

    close(net.flat(jax.jit(at_once)(net.PARAMS)), dense @ net.flat(V))


def test_a_diagonal_preconditions_from_both_sides():
    diagonal = net.like(np.linspace(0.5, 3, net.SIZE))

    @jax.jit
    def seen(v):
        hessian = estimators.hessian_product(net.loss, net.PARAMS, batches=net.DATA)
        return estimators.preconditioned_product(hessian, diagonal)(v)

    root = np.sqrt(net.flat(diagonal))
    close(net.flat(seen(V)), net.hessian() @ (net.flat(V) / root) / root)
    product = estimators.hessian_product(net.loss, net.PARAMS, batches=list)
    assert estimators.preconditioned_product(product, diagonal).on_host


def test_half_precision_is_evaluated_and_summed_in_float32():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), net.PARAMS)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    got, wanted = (in_parts(p, V, net.DATA) for p in (half, wide))
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


@on_mesh.BOTH
def test_with_cut_weights_and_data_products_are_those_of_one_device(axis_type):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)
    specs = {
        "up": {"kernel": (None, "model"), "bias": ("model",)},
        "down": {"kernel": ("model", None)},
        "scale": (),
    }

    def place(x, spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        params, v = (
            jax.tree.map(place, tree, specs, is_leaf=lambda x: isinstance(x, jax.Array))
            for tree in (net.PARAMS, V)
        )
        data = jax.tree.map(lambda x: place(x, (None, "data")), net.DATA)
        got = jax.block_until_ready(in_mesh(params, v, data))
        for x, p in zip(*map(jax.tree.leaves, (got, params)), strict=True):
            assert x.sharding.is_equivalent_to(p.sharding, x.ndim)
    close(net.flat(jax.device_get(got)), net.hessian() @ net.flat(V))


@jax.jit
def in_mesh(params, v, data):
    # The product over the cut middle axis has to say where its sum is to be.
    def loss(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"])
        parts = hidden[..., None] * params["down"]["kernel"]
        return net.error(params["scale"] * jnp.sum(parts, 1), batch)

    return estimators.hessian_product(loss, params, batches=data)(v)


@pytest.mark.parametrize(
    ("batches", "error", "said"),
    [
        (
            iter([1]),
            TypeError,
            "a function that returns a new iterator.* a list_iterator",
        ),
        ({"x": np.ones((3, 1)), "y": np.ones(2)}, ValueError, r"'x': \(3, 1\), 'y'"),
        (np.float32(1), ValueError, "same first axis"),
        (lambda: iter([]), ValueError, "gave no batch; it is called for every product"),
    ],
)
def test_batches_that_are_none_are_named(batches, error, said):
    with pytest.raises(error, match=rf"hessian_product: .*{said}"):
        estimators.hessian_product(net.loss, net.PARAMS, batches=batches)(V)


def test_a_function_that_gives_one_iterator_twice_is_named():
    once = iter([net.WHOLE])
    product = estimators.hessian_product(net.loss, net.PARAMS, batches=lambda: once)
    product(V)
    with pytest.raises(ValueError, match="must return a new iterator each time"):
        product(V)
