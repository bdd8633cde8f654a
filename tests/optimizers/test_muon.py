"""Muon against the authors' equations in float64, Optax's, and its own routing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from optlab import kernels, optimizers, schedules, sharding, trees
from optlab.trees import MatrixView
from tests.optimizers import trajectories

JORDAN = (3.4445, -4.7750, 2.0315)
FORMS = ("average", "sum", "bias_corrected")
SCALES = {
    "jordan": lambda m, n: np.sqrt(max(1, n / m)),
    "spectral": lambda m, n: np.sqrt(n / m),
    "moonlight": lambda m, n: 0.2 * np.sqrt(max(m, n)),
    "none": lambda m, n: 1.0,
}
WIDE, TALL = (4, 6), (6, 4)
# Slope of Newton-Schulz at zero, 485, times a few float32 roundings.
ROUNDING = 485 * 2e-7


def polar(x):
    """Five steps in float64, as published."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a, b, c = JORDAN
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def transcription(w, grads, eta, b1, nesterov, momentum, scale, weight_decay=0.0):
    """K. Jordan's Muon; the sum is Moonlight's, the bias correction Optax's."""
    m, points, weight = 0.0, [], 1.0 if momentum == "sum" else 1 - b1
    for t, g in enumerate(grads, start=1):
        m = b1 * m + weight * g
        u = b1 * m + weight * g if nesterov else m
        if momentum == "bias_corrected":
            u = m / (1 - b1**t)
            if nesterov:
                ahead = b1 * m / (1 - b1 ** (t + 1))
                u = ahead + (1 - b1) * g / (1 - b1**t)
        o = SCALES[scale](*w.shape) * polar(u)
        w = w - eta * (o + weight_decay * w)  # decay is not multiplied by the scale
        points.append(w)
    return points


@pytest.mark.parametrize("momentum", FORMS)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["jordan", "moonlight"])
def test_equals_the_authors_equations(momentum, nesterov, scale):
    form = {"b1": 0.8, "nesterov": nesterov, "momentum": momentum, "scale": scale}
    for shape in (WIDE, TALL):
        grads = trajectories.gradients(shape, dtype=np.float64)
        with jax.enable_x64(True):
            tx = optimizers.muon(0.1, **form, weight_decay=0.3)
            got, _ = trajectories.parameters(tx, jnp.ones(shape), grads)
        want = transcription(np.ones(shape), grads, 0.1, **form, weight_decay=0.3)
        # Float64 rounding times the slope of Newton-Schulz at zero. The bias
        # correction's power of b1 has an error of its own.
        np.testing.assert_allclose(got, want, atol=485 * 4e-16)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        ((64, 256), {"jordan": 2, "spectral": 2, "moonlight": 3.2, "none": 1}),
        ((256, 64), {"jordan": 1, "spectral": 0.5, "moonlight": 3.2, "none": 1}),
        # A convolution by its matrix, (3 x 3 x 16, 64).
        (
            (3, 3, 16, 64),
            {"jordan": 1, "spectral": 2 / 3, "moonlight": 2.4, "none": 1},
        ),
    ],
    ids=str,
)
def test_the_scale_of_a_shape_is_the_published_number(scale, shape, factors):
    tx = optimizers.scale_by_muon(scale=scale, orthogonalize=jnp.ones_like)
    gradient = {"kernel": jnp.ones(shape)}
    updates, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(updates["kernel"], factors[scale], rtol=1e-6)


def test_a_scale_may_be_a_function_of_fan_in_and_fan_out():
    tx = optimizers.scale_by_muon(
        scale=lambda mn: mn[0] + 10.0 * mn[1], orthogonalize=jnp.ones_like
    )
    gradient = {"kernel": jnp.ones((2, 3))}
    np.testing.assert_array_equal(
        tx.update(gradient, tx.init(gradient))[0]["kernel"], 32
    )


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_sum_gives_the_average_s_update(nesterov):
    grads = trajectories.gradients(WIDE)
    average, total = (
        trajectories.parameters(
            optimizers.muon(0.1, momentum=momentum, nesterov=nesterov),
            jnp.zeros(WIDE),
            grads,
        )[0]
        for momentum in ("average", "sum")
    )
    np.testing.assert_allclose(average, total, atol=4 * 0.1 * ROUNDING)


@pytest.mark.parametrize("nesterov", [True, False])
def test_with_bias_correction_equals_optax(nesterov):
    params = {"wide": jnp.ones(WIDE), "tall": jnp.ones(TALL)}
    wide, tall = (trajectories.gradients(shape) for shape in (WIDE, TALL))
    grads = [{"wide": a, "tall": b} for a, b in zip(wide, tall, strict=True)]
    ours = optimizers.muon(
        0.1,
        momentum="bias_corrected",
        nesterov=nesterov,
        weight_decay=0.3,
        orthogonalize=functools.partial(kernels.newton_schulz, eps=1e-8),
    )
    theirs = optax.contrib.muon(0.1, nesterov=nesterov, weight_decay=0.3)
    got, _ = trajectories.parameters(ours, params, grads)
    want, _ = trajectories.parameters(theirs, params, grads)
    for name in params:
        np.testing.assert_allclose(
            got[-1][name], want[-1][name], atol=4 * 0.1 * ROUNDING
        )


def test_the_default_form_is_not_optax_s():
    grads = trajectories.gradients(WIDE)
    got, _ = trajectories.parameters(optimizers.muon(0.1), jnp.ones(WIDE), grads)
    want, _ = trajectories.parameters(optax.contrib.muon(0.1), jnp.ones(WIDE), grads)
    np.testing.assert_allclose(got[0], want[0], atol=0.1 * ROUNDING)
    assert np.abs(got[1] - want[1]).max() > 1e-3


def test_the_second_direction_is_the_published_mix_of_gradients():
    identity = functools.partial(kernels.newton_schulz, coefficients=[(1.0, 0.0, 0.0)])
    tx = optimizers.scale_by_muon(b1=0.95, scale="none", orthogonalize=identity)
    first, second = (jnp.diag(jnp.array(d)) for d in ([1.0, 0.0], [0.0, 1.0]))
    _, state = tx.update(first, tx.init(first))
    updates, _ = tx.update(second, state)
    # 0.95^2 (1 - 0.95) g1 + (1 - 0.95^2) g2 is 0.9025 g1 + 1.95 g2, twenty times.
    np.testing.assert_allclose(updates[0, 0] / updates[1, 1], 0.9025 / 1.95, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_size_of_the_gradient_does_not_matter(form):
    gradient = trajectories.gradients(WIDE)[0]
    tx = optimizers.scale_by_muon(momentum=form)
    updates = [
        tx.update(jnp.asarray(c * gradient), tx.init(gradient))[0]
        for c in (1.0, 2.0**80, 2.0**-80)
    ]
    np.testing.assert_array_equal(updates[1], updates[0])
    np.testing.assert_array_equal(updates[2], updates[0])


@pytest.mark.parametrize("form", FORMS)
def test_a_zero_momentum_gives_a_zero_update(form):
    zero = {"kernel": jnp.zeros(WIDE), "empty": {"kernel": jnp.zeros((0, 3))}}
    tx = optimizers.scale_by_muon(momentum=form)
    updates, state = tx.update(zero, tx.init(zero))
    np.testing.assert_array_equal(updates["kernel"], 0)
    assert updates["empty"]["kernel"].shape == (0, 3)
    assert state.count == 1


@pytest.mark.parametrize("form", FORMS)
def test_after_two_to_the_thirty_one_steps_it_still_moves(form):
    tx = optimizers.scale_by_muon(momentum=form)
    old, new = (jnp.diag(jnp.array(d)) for d in ([1.0, 0.0], [0.0, 1.0]))
    state = tx.init(new)._replace(count=jnp.int32(2**31 - 1), momentum=old)
    updates, state = tx.update(new, state)
    assert state.count == 2**31 - 1
    # Along the momentum and along the gradient.
    assert 0.6 < updates[0, 0] < 1.2
    assert 0.4 < updates[1, 1] < 1.2


def test_in_a_narrow_accumulator_the_decay_is_not_rounded():
    b1, first, second = 0.999, *trajectories.gradients(WIDE, steps=2)
    tx = optimizers.scale_by_muon(
        b1=b1, momentum="sum", accumulator_dtype="bfloat16", nesterov=False
    )
    _, state = tx.update(jnp.asarray(first), tx.init(jnp.asarray(first)))
    assert state.momentum.dtype == jnp.bfloat16
    updates, _ = tx.update(jnp.asarray(second), state)
    m = np.asarray(jnp.asarray(first, jnp.bfloat16).astype(jnp.float32), np.float64)
    want = SCALES["jordan"](*WIDE) * polar(b1 * m + second)
    np.testing.assert_allclose(updates, want, atol=ROUNDING)


def test_half_precision_parameters_have_a_float32_momentum():
    gradient = {"kernel": jnp.ones(WIDE, jnp.bfloat16)}
    tx = optimizers.muon(0.1)
    updates, state = tx.update(gradient, tx.init(gradient), gradient)
    assert updates["kernel"].dtype == jnp.bfloat16
    assert optax.tree.get(state, "momentum")["kernel"].dtype == jnp.float32


# Routing


def test_each_leaf_goes_to_its_group():
    params = {
        "embed": {"embedding": jnp.ones((5, 4))},
        "up": {"kernel": jnp.ones(WIDE), "bias": jnp.ones(6)},
        "head": {"kernel": jnp.ones((4, 5))},
    }
    tx = optimizers.muon(1.0, rest=optax.sgd(0.5), orthogonalize=jnp.zeros_like)
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["up"]["kernel"], 0)
    for leaf in (updates["embed"], updates["head"], {"bias": updates["up"]["bias"]}):
        np.testing.assert_array_equal(next(iter(leaf.values())), -0.5)
    momentum = optax.tree.get(state, "momentum")
    assert [m.shape for m in jax.tree.leaves(momentum)] == [WIDE]


def test_the_rest_has_its_own_rate_and_decay_its_own_mask():
    params = {
        "a": {"kernel": jnp.ones(WIDE), "bias": jnp.ones(6)},
        "b": {"kernel": jnp.ones(WIDE)},
    }
    nothing = jax.tree.map(jnp.zeros_like, params)
    tx = optimizers.muon(
        schedules.linear(0.5, total_steps=2),
        rest=optimizers.sgd(0.25),
        weight_decay=0.5,
        mask={"a": {"kernel": True, "bias": True}, "b": {"kernel": False}},
    )
    points, state = trajectories.parameters(tx, params, [nothing] * 2)
    np.testing.assert_array_equal(points[0]["a"]["kernel"], 3 / 4)
    np.testing.assert_array_equal(points[1]["a"]["kernel"], 21 / 32)
    np.testing.assert_array_equal(points[1]["a"]["bias"], 1)
    np.testing.assert_array_equal(points[1]["b"]["kernel"], 1)
    assert sorted(trajectories.rates(state)) == [0.25, 0.25]


def test_a_missing_rest_is_said_with_the_leaf_and_the_cure():
    params = {"up": {"kernel": jnp.ones(WIDE), "bias": jnp.ones(6)}}
    with pytest.raises(ValueError, match=r"leaf 'up/bias' has shape \(6,\).*rest="):
        optimizers.muon(0.1).init(params)
    only = {"up": {"kernel": jnp.ones(WIDE)}}
    optimizers.muon(0.1).init(only)


@pytest.mark.parametrize("make", [optimizers.scale_by_muon, optimizers.muon])
def test_unknown_forms_are_refused_when_the_chain_is_built(make):
    arguments = () if make is optimizers.scale_by_muon else (0.1,)
    rest = {} if make is optimizers.scale_by_muon else {"rest": optax.sgd(0.1)}
    with pytest.raises(ValueError, match=r"one of .*'average'.*got 'mean'"):
        make(*arguments, **rest, momentum="mean")
    with pytest.raises(ValueError, match=r"one of .*'moonlight'.*got 'rms'"):
        make(*arguments, **rest, scale="rms")


def test_a_leaf_is_read_the_same_way_whoever_its_neighbours_are():
    # Without its neighbours, which a rule sends to the rest, the output projection of
    # an attention looks like a stack of matrices, one a head.
    rng = np.random.default_rng(0)
    attention = {name: {"kernel": jnp.ones((4, 2, 2))} for name in ("query", "key")}
    attention["out"] = {"kernel": jnp.asarray(rng.normal(size=(2, 2, 4)), jnp.float32)}
    views = functools.partial(trees.matrix_views, rules=[("query|key", None)])
    assert "1 x (4, 4)" in trees.routing_table(attention, views(attention))
    tx = optimizers.muon(1.0, rest=optax.sgd(1.0), views=views, nesterov=False)
    updates, _ = tx.update(attention, tx.init(attention), attention)
    whole = kernels.newton_schulz(attention["out"]["kernel"].reshape(4, 4))
    np.testing.assert_allclose(
        updates["out"]["kernel"], -whole.reshape(2, 2, 4), atol=ROUNDING
    )


def test_views_may_be_a_tree_with_negative_axes():
    gradient = {"w": jnp.asarray(trajectories.gradients((2, *WIDE))[0])}
    given = optimizers.scale_by_muon(views={"w": MatrixView((-2,), (-1,))})
    named = {"kernel": gradient["w"]}
    guessed = optimizers.scale_by_muon()
    np.testing.assert_array_equal(
        given.update(gradient, given.init(gradient))[0]["w"],
        guessed.update(named, guessed.init(named))[0]["kernel"],
    )


# Pieces and stacks


def step(tx, gradient):
    return tx.update(gradient, tx.init(gradient), gradient)[0]


def test_a_split_projection_equals_separate_parameters():
    rng = np.random.default_rng(0)
    sizes = (8, 2, 2)  # grouped queries: keys and values are narrower
    parts = [jnp.asarray(rng.normal(size=(4, size)), jnp.float32) for size in sizes]
    fused = {"qkv": {"kernel": jnp.concatenate(parts, axis=1)}}
    view = MatrixView((0,), (1,), split=sizes)
    tx = optimizers.muon(
        0.1, views=functools.partial(trees.matrix_views, rules=[("qkv", view)])
    )
    got = step(tx, fused)["qkv"]["kernel"]
    separate = step(
        optimizers.muon(0.1), {str(i): {"kernel": p} for i, p in enumerate(parts)}
    )
    want = [separate[str(i)]["kernel"] for i in range(3)]
    np.testing.assert_allclose(got, np.concatenate(want, axis=1), atol=ROUNDING)


def test_per_head_views_equal_one_parameter_a_head():
    rng = np.random.default_rng(0)
    heads = jnp.asarray(rng.normal(size=(4, 2, 3)), jnp.float32)
    rules = [("query", MatrixView((0,), (2,)))]
    tx = optimizers.muon(0.1, views=functools.partial(trees.matrix_views, rules=rules))
    got = step(tx, {"query": {"kernel": heads}})["query"]["kernel"]
    for i in range(2):
        alone = step(optimizers.muon(0.1), {"kernel": heads[:, i]})["kernel"]
        np.testing.assert_allclose(got[:, i], alone, atol=ROUNDING)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
        return x + nn.Dense(6)(attention(nn.LayerNorm()(x))), None


def test_scan_stacked_layers_equal_separate_layers():
    scanned = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    shapes = jax.eval_shape(
        lambda: scanned().init(jax.random.key(0), jnp.ones((1, 2, 6)), None)
    )["params"]
    rng = np.random.default_rng(0)
    stacked = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes
    )
    layers = {str(i): jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(3)}
    tx = optimizers.muon(0.1, rest=optimizers.sgd(0.1))
    got, apart = step(tx, stacked), step(tx, layers)
    want = jax.tree.map(lambda *parts: jnp.stack(parts), *apart.values())
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=ROUNDING), got, want
    )
    assert "3 x (6, 4): in (1,), out (2, 3)" in trees.routing_table(stacked)


def test_the_kernel_runs_once_for_each_shape():
    calls = []

    def kernel(x):
        calls.append(x.shape)
        return x

    params = {str(i): {"kernel": jnp.ones(WIDE)} for i in range(5)}
    params["tall"] = {"kernel": jnp.ones((2, *TALL))}
    step(optimizers.muon(0.1, orthogonalize=kernel), params)
    assert sorted(calls) == [(2, *TALL), (5, *WIDE)]


@pytest.mark.parametrize(
    "settings",
    [
        {"batching": "loop"},
        {"form": "gram"},
        {"form": "standard", "symmetric": 1},
    ],
    ids=str,
)
def test_how_the_kernel_computes_does_not_change_the_update(settings):
    rng = np.random.default_rng(0)
    params = {
        str(i): {"kernel": jnp.asarray(rng.normal(size=WIDE), jnp.float32)}
        for i in range(3)
    }
    want = step(optimizers.muon(0.1), params)
    kernel = functools.partial(kernels.newton_schulz, **settings)
    got = jax.jit(functools.partial(step, optimizers.muon(0.1, orthogonalize=kernel)))(
        params
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=0.1 * ROUNDING), got, want
    )


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"coefficients": "accurate"}, 0.15),
        ({"coefficients": "accurate", "compute_dtype": "bfloat16"}, 0.22),
        ({}, 0.33),
    ],
    ids=str,
)
def test_named_kernels_move_every_direction_as_far_as_they_say(settings, bound):
    gradient = {"kernel": jnp.asarray(trajectories.gradients((12, 48))[0])}
    kernel = functools.partial(kernels.newton_schulz, **settings)
    tx = optimizers.scale_by_muon(scale="none", orthogonalize=kernel)
    s = np.linalg.svd(step(tx, gradient)["kernel"], compute_uv=False)
    assert np.abs(s - 1).max() < bound
    assert s.std() > 1e-3


# Meshes with Explicit axes


def test_a_sharded_matrix_with_a_bare_kernel_is_refused_and_the_cure_named():
    mesh = jax.make_mesh((8,), ("x",))
    sharded = jax.device_put(
        np.ones((8, 4), np.float32), NamedSharding(mesh, PartitionSpec("x"))
    )
    with jax.set_mesh(mesh):
        tx = optimizers.muon(0.1)
        with pytest.raises(ValueError, match=r"leaf 'kernel' is sharded.*over_axis"):
            jax.jit(tx.update)({"kernel": sharded}, tx.init({"kernel": sharded}))


ATTENTION = {
    "query": (16, 8, 4),
    "out": (8, 4, 16),
    "up": (16, 24),
    "conv": (3, 1, 8, 16),
}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_on_explicit_axes_every_placement_gives_the_values_of_one_device(axis):
    mesh = jax.make_mesh((8,), ("x",))
    rng = np.random.default_rng(0)
    gradient = {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
        for name, shape in ATTENTION.items()
    }

    def place(x):
        spec = [
            "x" if i == axis and n % 8 == 0 else None for i, n in enumerate(x.shape)
        ]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    want = step(optimizers.scale_by_muon(), gradient)
    kernel = sharding.over_axis(kernels.newton_schulz, mesh, "x")
    tx = optimizers.scale_by_muon(orthogonalize=kernel)
    placed = jax.tree.map(place, gradient)
    with jax.set_mesh(mesh):
        state = tx.init(placed)
        updates, after = jax.jit(tx.update)(placed, state)
    for name in ATTENTION:
        got, like = updates[name]["kernel"], placed[name]["kernel"]
        assert got.sharding == like.sharding
        assert after.momentum[name]["kernel"].sharding == like.sharding
        np.testing.assert_allclose(got, want[name]["kernel"], atol=ROUNDING)
