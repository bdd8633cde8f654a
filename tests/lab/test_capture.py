"""Captured statistics against inputs and output gradients computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from optlab import lab, optimizers, trees
from optlab.lab import capture

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.normal(size=(4, 3)), jnp.float32)
Y = jnp.asarray(RANDOM.normal(size=(4, 2)), jnp.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="down")(jnp.tanh(nn.Dense(5, name="up")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(3, 5, rngs=rngs)
        self.down = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


def squares(out, y):
    return 0.5 * jnp.mean(jnp.sum((out - y) ** 2, axis=-1))


def linen_loss(params, x, y):
    return squares(Linen().apply({"params": params}, x), y)


def nnx_loss(model, x, y):
    return squares(model(x), y)


def linen_case():
    params = Linen().init(jax.random.key(0), X)["params"]
    plain = jax.value_and_grad(linen_loss)(params, X, Y)
    return (
        params,
        plain,
        jax.jit(capture.linen_value_and_grad(linen_loss))(params, X, Y),
    )


def nnx_case():
    model = Nnx(nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    value, grads = nnx.value_and_grad(nnx_loss)(model, X, Y)
    found = nnx.jit(lambda m: capture.nnx_value_and_grad(nnx_loss)(m, X, Y))(model)
    pure = [nnx.to_pure_dict(tree) for tree in (grads, found[1])]
    return params, (value, pure[0]), (found[0], pure[1], found[2])


@pytest.mark.parametrize("make", [linen_case, nnx_case])
def test_statistics_are_those_of_the_layers_and_gradients_stay(make):
    params, (value, grads), (got_value, got_grads, stats) = make()
    np.testing.assert_allclose(got_value, value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        got_grads,
        grads,
    )
    up, down = (jax.tree.map(np.asarray, params[name]) for name in ("up", "down"))
    hidden = np.tanh(X @ up["kernel"] + up["bias"])
    out_grads = hidden @ down["kernel"] + down["bias"] - Y  # N dL/dy, sample by sample
    up_grads = out_grads @ down["kernel"].T * (1 - hidden**2)
    for name, x, g in (("up", X, up_grads), ("down", hidden, out_grads)):
        want = trees.LayerStats(x.mean(0), g.mean(0), x.T @ x / 4, g.T @ g / 4)
        for a, b in zip(stats[name], want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The mean output gradient is the gradient by the bias.
    np.testing.assert_allclose(stats["up"].outputs, grads["up"]["bias"], rtol=1e-5)


def test_statistics_fit_the_layers_of_an_attention_and_its_tokens_are_samples():
    model = nn.Sequential([nn.MultiHeadDotProductAttention(2), nn.Dense(2)])
    x = jnp.asarray(RANDOM.normal(size=(2, 5, 6)), jnp.float32)
    params = model.init(jax.random.key(0), x)["params"]

    def loss(params):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    _, grads, stats = capture.linen_value_and_grad(loss)(params)
    np.testing.assert_allclose(
        stats["layers_0/query"].inputs, x.mean((0, 1)), rtol=1e-5
    )
    tx = optimizers.scale_by_mkor(every=1)
    updates, _ = tx.update(grads, tx.init(params), params, layer_stats=stats)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_a_layer_that_is_called_twice_has_the_samples_of_both_calls():
    layer = nn.Dense(3, use_bias=False)
    params = layer.init(jax.random.key(0), X)["params"]

    def loss(params):
        once = layer.apply({"params": params}, X)
        return jnp.mean(jnp.sum(layer.apply({"params": params}, once), axis=1))

    _, grads, stats = capture.linen_value_and_grad(loss)(params)
    once = X @ params["kernel"]
    np.testing.assert_allclose(
        stats[""].inputs, np.concatenate([X, once]).mean(0), rtol=1e-5
    )
    # Both calls feed the one gradient: X^T g_1 + once^T g_2, g_2 = 1 / 4 each.
    first = np.ones((4, 3)) / 4 @ params["kernel"].T
    np.testing.assert_allclose(
        grads["kernel"], X.T @ first + once.T @ np.ones((4, 3)) / 4, rtol=1e-5
    )


def test_what_nobody_reads_is_not_computed():
    wide = jnp.ones((8, 64))
    params = nn.Dense(64).init(jax.random.key(0), wide)["params"]

    def loss(params):
        return jnp.mean(nn.Dense(64).apply({"params": params}, wide) ** 2)

    def flops(function):
        return jax.jit(function).lower(params).compile().cost_analysis()["flops"]

    both = capture.linen_value_and_grad(loss)
    plain = flops(jax.value_and_grad(loss))
    assert flops(lambda p: both(p)[:2]) <= 1.1 * plain
    assert flops(lambda p: both(p)[2].popitem()[1].input_moment) > 0


def test_layers_inside_a_scan_are_refused():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(3)(x), None

    scanned = nn.scan(
        Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    params = scanned.init(jax.random.key(0), X, None)["params"]

    def loss(params):
        return jnp.mean(scanned.apply({"params": params}, X, None)[0])

    with pytest.raises(lab.LabError, match=r"inside scan.*Unroll"):
        capture.linen_value_and_grad(loss)(params)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_mkor_trains_a_flax_model_from_one_line(kind):
    tx, losses = optimizers.mkor(0.05, every=2), []
    if kind == "linen":
        params = Linen().init(jax.random.key(0), X)["params"]
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            value, grads, stats = capture.linen_value_and_grad(linen_loss)(params, X, Y)
            updates, state = tx.update(grads, state, params, layer_stats=stats)
            return optax.apply_updates(params, updates), state, value

        for _ in range(30):
            params, state, value = step(params, state)
            losses.append(float(value))
    else:
        model = Nnx(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def nnx_step(model, optimizer):
            value, grads, stats = capture.nnx_value_and_grad(nnx_loss)(model, X, Y)
            optimizer.update(model, grads, layer_stats=stats)
            return value

        losses = [float(nnx_step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


def conv_losses(weight, **settings):
    """The same convolution of linen and of nnx, as functions (kernel, x) -> stats."""
    (kernel, features) = settings.pop("kernel_size"), weight.shape[-1]

    def of_outputs(y):
        return jnp.sum(y * weight)

    def linen(x, seed):
        layer = nn.Conv(features, kernel, use_bias=False, **settings)
        params = layer.init(jax.random.key(seed), x)["params"]

        def loss(params):
            return of_outputs(layer.apply({"params": params}, x))

        _, grads, stats = jax.jit(capture.linen_value_and_grad(loss))(params)
        return grads["kernel"], stats[""]

    def of_nnx(x, seed):
        layer = nnx.Conv(
            x.shape[-1],
            features,
            kernel,
            use_bias=False,
            rngs=nnx.Rngs(seed),
            **settings,
        )
        with_stats = capture.nnx_value_and_grad(lambda layer: of_outputs(layer(x)))
        _, grads, stats = nnx.jit(with_stats)(layer)
        return nnx.to_pure_dict(grads)["kernel"], stats[""]

    return {"linen": linen, "nnx": of_nnx}


CONVOLUTIONS = [
    {"kernel_size": (3,), "padding": "CAUSAL", "kernel_dilation": 2},
    {"kernel_size": (4,), "padding": "REFLECT", "strides": 2},
    {"kernel_size": (3, 2), "strides": 2},
    {"kernel_size": (2, 3), "strides": (1, 2), "padding": "VALID"},
    {"kernel_size": (2, 3), "padding": "CIRCULAR", "kernel_dilation": (1, 2)},
    {"kernel_size": (3, 2), "padding": ((0, 1), (2, 0)), "strides": None},
    {"kernel_size": (3, 2), "padding": 1, "input_dilation": (1, 2)},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_patches_of_a_convolution_have_the_order_of_its_kernel(kind, settings):
    rank = len(settings["kernel_size"])
    x = jnp.asarray(RANDOM.normal(size=(5, 6, 2)[-rank - 1 :]), jnp.float32)
    weight = jnp.array([1.0, -2.0, 3.0])
    kernel, stats = conv_losses(weight, **settings)[kind](x[None], 0)
    # The gradient is the same at each of the T outputs: the sum of the patches, times
    # that gradient.
    product = np.outer(stats.inputs, stats.outputs).reshape(kernel.shape)
    positions = kernel.sum() / product.sum()
    np.testing.assert_allclose(positions, round(float(positions)), rtol=1e-4)
    np.testing.assert_allclose(kernel, positions * product, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(3,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_of_one_sample_the_product_is_the_gradient_of_the_kernel(kind, size):
    x = jnp.asarray(RANDOM.normal(size=(*size, 4)), jnp.float32)
    weight = jnp.asarray(RANDOM.normal(size=3), jnp.float32)
    settings = {"kernel_size": size, "padding": "VALID"}
    kernel, stats = conv_losses(weight, **settings)[kind](x[None], 0)
    product = np.outer(stats.inputs, stats.outputs)
    np.testing.assert_allclose(kernel.reshape(product.shape), product, rtol=1e-5)
    # An image alone is a batch of one.
    _, same = conv_losses(weight, **settings)[kind](x, 0)
    for a, b in zip(stats, same, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_moments_of_a_convolution_are_those_of_kfc(kind):
    x = RANDOM.normal(size=(3, 5, 4, 2))  # N images, of which T = 3 x 3 positions
    weight = RANDOM.normal(size=(3, 3, 3, 2))
    settings = {"kernel_size": (3, 2), "padding": "VALID"}
    _, stats = conv_losses(jnp.float32(weight), **settings)[kind](jnp.float32(x), 0)
    patches = np.stack(
        [x[:, i : i + 3, j : j + 2].reshape(3, -1) for i in range(3) for j in range(3)],
        axis=1,
    )
    gradients = 3 * weight.reshape(3, 9, 2)  # of the loss of an image, N dL/dy
    summed = np.einsum("nta,ntb->ab", patches, patches) / 3
    mean = np.einsum("nta,ntb->ab", gradients, gradients) / 27
    for got, want in (
        (stats.inputs, patches.mean((0, 1))),
        (stats.outputs, gradients.mean((0, 1))),
        (np.kron(stats.input_moment, stats.output_moment), np.kron(summed, mean)),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


class LinenCnn(nn.Module):
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="conv_in")(x))
        x = nn.Conv(4, (2, 2), feature_group_count=self.groups, name="conv_out")(x)
        return nn.Dense(2, name="down")(nn.relu(x).reshape(len(x), -1))


class NnxCnn(nnx.Module):
    def __init__(self, groups=1):
        rngs = nnx.Rngs(0)
        self.conv_in = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.conv_out = nnx.Conv(4, 4, (2, 2), feature_group_count=groups, rngs=rngs)
        self.down = nnx.Linear(36, 2, rngs=rngs)

    def __call__(self, x):
        x = self.conv_out(nnx.relu(self.conv_in(x)))
        return self.down(nnx.relu(x).reshape(len(x), -1))


IMAGES = jnp.asarray(RANDOM.normal(size=(4, 6, 6, 2)), jnp.float32)


def linen_cnn_loss(params, groups=1):
    return squares(LinenCnn(groups).apply({"params": params}, IMAGES), Y)


def nnx_cnn_loss(model):
    return squares(model(IMAGES), Y)


TRAINERS = {
    "mkor": optimizers.mkor(0.02, every=2),
    "kfac": optimizers.kfac(0.1, damping=0.1, every=2),
}


@pytest.mark.parametrize(("kind", "name"), [("linen", "mkor"), ("nnx", "kfac")])
def test_the_methods_of_layers_train_a_convolutional_model(kind, name):
    tx, losses = TRAINERS[name], []
    if kind == "linen":
        params = LinenCnn().init(jax.random.key(0), IMAGES)["params"]

        @jax.jit
        def step(params, state):
            value, grads, stats = capture.linen_value_and_grad(linen_cnn_loss)(params)
            updates, state = tx.update(grads, state, params, layer_stats=stats)
            return optax.apply_updates(params, updates), state, value

        state = tx.init(params)
        for _ in range(20):
            params, state, value = step(params, state)
            losses.append(float(value))
    else:
        model = NnxCnn()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def nnx_step(model, optimizer):
            value, grads, stats = capture.nnx_value_and_grad(nnx_cnn_loss)(model)
            optimizer.update(model, grads, layer_stats=stats)
            return value

        losses = [float(nnx_step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_convolution_of_groups_is_refused_or_left(kind):
    def found(leave):
        if kind == "nnx":
            model = NnxCnn(groups=2)
            return capture.nnx_value_and_grad(nnx_cnn_loss, leave=leave)(model)
        params = LinenCnn(groups=2).init(jax.random.key(0), IMAGES)["params"]
        run = capture.linen_value_and_grad(linen_cnn_loss, leave=leave)
        return run(params, groups=2)

    said = r"'conv_out' has feature_group_count=2.*leave='conv_out'.*rules=\["
    with pytest.raises(lab.LabError, match=said):
        found(None)
    assert set(found("conv_out")[2]) == {"conv_in", "down"}


def test_a_masked_convolution_is_refused():
    layer = nn.Conv(1, (2,), mask=jnp.ones((2, 3, 1)))
    params = layer.init(jax.random.key(0), X)["params"]

    def loss(params):
        return jnp.mean(layer.apply({"params": params}, X))

    with pytest.raises(lab.LabError, match=r"has a mask"):
        capture.linen_value_and_grad(loss)(params)
