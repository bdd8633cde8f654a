"""TrAct: the published numbers, two forms of one gradient, convolutions, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import estimators
from tests.sharding import on_mesh

RANDOM = np.random.default_rng(0)


def exact(x, g, damping=0.1):
    """(X'X / b + damping I)^-1 X'G, in float64."""
    x, g = (np.asarray(a, float).reshape(-1, a.shape[-1]) for a in (x, g))
    damped = x.T @ x / len(x) + damping * np.eye(x.shape[1])
    return np.linalg.solve(damped, x.T @ g)


@jax.jit
def pulled(x, g, kernel=None, damping=0.1):
    """Pulls G back through the layer, to the inputs and to the kernel."""
    kernel = (
        jnp.zeros((x.shape[-1], g.shape[-1]), x.dtype) if kernel is None else kernel
    )
    _, pull = jax.vjp(
        lambda x, w: estimators.tract_dense(x, w, damping=damping), x, kernel
    )
    return pull(jnp.asarray(g, x.dtype))


@pytest.mark.parametrize(
    ("x", "g", "wanted"),
    [
        ([[1, 0], [0, 2]], [[1], [1]], [[1.6666667], [0.9523810]]),
        ([[1, 0, 2]], [[1]], [[0.1960784], [0], [0.3921569]]),
        (
            [[1, 2], [3, -1], [0.5, 0.5]],
            [[1, 0], [0, 1], [1, -1]],
            # As a Flax kernel has it; without the division by b .1806 .2235 ...
            [[0.52767719, 0.65959648], [1.42265908, -0.72167615]],
        ),
    ],
    ids=["square", "one row", "three rows"],
)
def test_the_gradient_is_the_published_one(x, g, wanted):
    with jax.enable_x64(True):
        _, kernel = pulled(jnp.asarray(x, float), np.asarray(g, float))
        np.testing.assert_allclose(kernel, wanted, atol=1e-7)
    _, kernel = pulled(jnp.asarray(x, jnp.float32), np.asarray(g))
    np.testing.assert_allclose(kernel, wanted, atol=1e-6)


def test_few_and_many_rows_give_one_gradient():
    """Rows given twelve times have the mean that they have once, and the larger system.

    Gradients of the outputs are divided by twelve, as by a mean over more rows.
    """
    with jax.enable_x64(True):
        x, g = (jnp.asarray(RANDOM.normal(size=(3, k))) for k in (7, 4))
        few = pulled(x, g, damping=0.01)[1]
        many = pulled(jnp.tile(x, (12, 1)), jnp.tile(g, (12, 1)) / 12, damping=0.01)[1]
        np.testing.assert_allclose(many, few, atol=1e-10)
        np.testing.assert_allclose(few, exact(x, g, 0.01), atol=1e-10)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (4, 5)])
def test_all_leading_axes_are_rows_and_all_else_is_as_ever(lead):
    x = jnp.asarray(RANDOM.normal(size=(*lead, 8)), jnp.float32)
    g = jnp.asarray(RANDOM.normal(size=(*lead, 3)), jnp.float32)
    kernel = jnp.asarray(RANDOM.normal(size=(8, 3)), jnp.float32)
    out = estimators.tract_dense(x, kernel)
    np.testing.assert_array_equal(out, jnp.matmul(x, kernel))
    to_x, to_kernel = pulled(x, g, kernel)
    np.testing.assert_allclose(to_x, g @ kernel.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_kernel, exact(x, g), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("strides", "padding"),
    [(1, "SAME"), ((2, 1), "VALID"), (2, [(1, 0), (2, 2)])],
    ids=str,
)
def test_a_convolution_has_a_row_for_each_patch(strides, padding):
    x = jnp.asarray(RANDOM.normal(size=(2, 6, 5, 3)), jnp.float32)
    kernel = jnp.asarray(RANDOM.normal(size=(3, 2, 3, 4)), jnp.float32)
    layer = nnx.Conv(
        3, 4, (3, 2), strides, padding=padding, use_bias=False, rngs=nnx.Rngs(0)
    )
    layer.kernel[...] = kernel
    mine = functools.partial(
        estimators.tract_conv, strides=strides, padding=padding, damping=0.3
    )
    out, pull = jax.vjp(mine, x, kernel)
    wanted, pull_plain = jax.vjp(lambda x: layer(x), x)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    g = jnp.asarray(RANDOM.normal(size=out.shape), jnp.float32)
    to_x, to_kernel = pull(g)
    np.testing.assert_allclose(to_x, pull_plain(g)[0], rtol=1e-4, atol=1e-5)
    # Patches by hand, in the order of the kernel's axes.
    pads = padding
    down, across = (strides,) * 2 if isinstance(strides, int) else strides
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads((6, 5), (3, 2), (down, across), padding)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    patches = [
        [
            padded[:, i * down : i * down + 3, j * across : j * across + 2].reshape(
                2, -1
            )
            for j in range(out.shape[2])
        ]
        for i in range(out.shape[1])
    ]
    rows = np.moveaxis(np.asarray(patches), 2, 0)
    wanted = exact(rows, g, 0.3).reshape(kernel.shape)
    np.testing.assert_allclose(to_kernel, wanted, rtol=2e-4, atol=2e-4)


def test_half_precision_is_solved_in_float32():
    x, g = (jnp.asarray(RANDOM.normal(size=(40, k)), jnp.bfloat16) for k in (6, 2))
    kernel = jnp.ones((6, 2), jnp.bfloat16)
    to_x, to_kernel = pulled(x, g, kernel, damping=1e-3)
    assert (to_x.dtype, to_kernel.dtype) == (jnp.bfloat16,) * 2
    wanted = exact(x.astype(float), g.astype(float), 1e-3)
    gap = np.abs(to_kernel.astype(float) - wanted)
    assert gap.max() < 2.0**-8 * np.abs(wanted).max()
    # Inputs of another dtype get theirs back.
    mixed = pulled(x.astype(jnp.float32), g, kernel)
    assert [a.dtype for a in mixed] == [jnp.float32, jnp.bfloat16]


def test_inputs_without_rows_and_of_zeros_give_no_gradient():
    for x in (jnp.zeros((0, 3)), jnp.zeros((5, 3)), jnp.zeros((2, 3))):
        to_kernel = pulled(x, jnp.ones((len(x), 2)))[1]
        np.testing.assert_array_equal(to_kernel, 0.0)


@on_mesh.BOTH
@pytest.mark.parametrize("kind", ["many rows", "few rows", "images"])
def test_with_a_cut_batch_statistics_are_of_the_whole_batch(axis_type, kind):
    x_shape, kernel_shape = {
        "many rows": ((16, 3, 4), (4, 2)),
        "few rows": ((8, 12), (12, 2)),
        "images": ((8, 4, 4, 2), (3, 3, 2, 4)),
    }[kind]
    layer = estimators.tract_conv if kind == "images" else estimators.tract_dense
    x, kernel = (RANDOM.normal(size=s) for s in (x_shape, kernel_shape))

    @jax.jit
    def gradients(x, kernel):
        return jax.grad(lambda x, w: jnp.mean(layer(x, w) ** 2), (0, 1))(x, kernel)

    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    wanted = gradients(x, kernel)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        got = gradients(x, kernel)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.max(jnp.abs(b))))
    assert got[1].sharding.is_fully_replicated


@on_mesh.BOTH
@pytest.mark.parametrize("rows", [16, 4], ids=["many rows", "few rows"])
def test_the_gradient_lies_where_its_kernel_lies(axis_type, rows):
    x, kernel = (RANDOM.normal(size=s).astype(np.float32) for s in ((rows, 8), (8, 4)))
    slope = jax.jit(
        jax.grad(lambda w, x: jnp.mean(estimators.tract_dense(x, w) ** 2)),
    )
    wanted = slope(kernel, x)
    mesh = on_mesh.mesh_of(axis_type)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        for spec in ((None, "model"), ("model", None), ("data", "model")):
            place = NamedSharding(mesh, PartitionSpec(*spec))
            got = jax.block_until_ready(slope(jax.device_put(kernel, place), x))
            scale = float(jnp.max(jnp.abs(wanted)))
            np.testing.assert_allclose(got, wanted, atol=1e-5 * scale)
            if axis_type == AxisType.Explicit:
                assert got.sharding.is_equivalent_to(place, 2)


@pytest.mark.parametrize("check_vma", [False, True])
def test_in_a_shard_statistics_are_of_its_rows(check_vma):
    x, kernel = (RANDOM.normal(size=s).astype(np.float32) for s in ((16, 3), (3, 2)))

    def slope(x, kernel):
        found = jax.grad(lambda w: jnp.sum(estimators.tract_dense(x, w) ** 2))(kernel)
        # With the check, the gradient to what devices share is summed by JAX.
        return found if check_vma else jax.lax.psum(found, "data")

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    P = PartitionSpec
    run = jax.shard_map(
        slope, mesh=mesh, in_specs=(P("data"), P()), out_specs=P(), check_vma=check_vma
    )
    got = jax.block_until_ready(jax.jit(run)(x, kernel))
    wanted = sum(exact(part, 2 * part @ kernel) for part in np.split(x, 8))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


class First(nnx.Linear):
    """A first layer of a Flax model, as the docstring has it."""

    def __call__(self, x):
        return estimators.tract_dense(x, self.kernel[...]) + self.bias[...]


def test_a_flax_layer_differs_in_the_gradient_of_its_kernel_alone():
    x = jnp.asarray(RANDOM.normal(size=(6, 4)), jnp.float32)

    def loss(layer):
        return jnp.mean(layer(x) ** 2)

    plain, mine = (kind(4, 3, rngs=nnx.Rngs(0)) for kind in (nnx.Linear, First))
    value, wanted = nnx.value_and_grad(loss)(plain)
    got_value, got = nnx.value_and_grad(loss)(mine)
    np.testing.assert_allclose(got_value, value, rtol=1e-6)
    np.testing.assert_allclose(got["bias"][...], wanted["bias"][...], rtol=1e-6)
    slope = 2 * plain(x) / (6 * 3)
    np.testing.assert_allclose(got["kernel"][...], exact(x, slope), rtol=1e-4)


def conv(**how):
    return estimators.tract_conv(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), **how)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda x: estimators.tract_dense(x, jnp.ones((4, 2))),
            r"tract_dense: x of shape \(5, 3\) and kernel of shape \(4, 2\)",
        ),
        (lambda x: estimators.tract_dense(x, x.T, damping=0), "damping .* 0, got 0"),
        (
            lambda x: estimators.tract_conv(x, jnp.ones((3, 3, 1, 2))),
            r"tract_conv: x of shape \(5, 3\) and kernel of shape \(3, 3, 1, 2\)",
        ),
        (lambda x: conv(strides=1.5), "strides must be one integer .* got 1.5"),
        (lambda x: conv(strides=(1, 2, 3)), r"got \(1, 2, 3\)"),
        (lambda x: conv(strides=0), "strides must .* got 0"),
        (lambda x: conv(padding=1), "padding must be one of .* two pairs, got 1"),
        (lambda x: conv(padding="CIRCULAR"), "got 'CIRCULAR'"),
    ],
)
def test_what_makes_no_sense_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(jnp.ones((5, 3)))
