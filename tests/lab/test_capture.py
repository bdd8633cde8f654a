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
