"""Gradients from values of the loss: mean, spread, precision, replay, meshes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import estimators, optimizers
from tests import same_bits

KEY = jax.random.key(7)
CURVATURES = jnp.linspace(1.0, 10.0, 100)
START = jnp.sin(jnp.arange(100.0))
spsa = estimators.spsa_value_and_grad


def bowl(x):
    return jnp.sum(CURVATURES * x**2) / 2


def network(params, x, y):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


PARAMS = {
    "in": {
        "bias": np.linspace(-1, 1, 16, dtype=np.float32),
        "kernel": np.sin(np.arange(128, dtype=np.float32)).reshape(8, 16),
    },
    "out": np.cos(np.arange(128, dtype=np.float32)).reshape(16, 8),
}
BATCH = tuple(
    np.sin(np.arange(128, dtype=np.float32) * c).reshape(16, 8) for c in (3, 5)
)


@pytest.mark.parametrize(
    ("distribution", "square", "tolerance"),
    [("normal", 102, 3), ("rademacher", 100, 2)],
)
def test_the_mean_is_the_gradient_and_the_square_is_that_of_the_dimension(
    distribution, square, tolerance
):
    """Over N keys the mean is off by sqrt((d + 1) / N) = 0.071 of the gradient."""

    @jax.jit
    def moments(keys):
        found = jax.vmap(lambda k: spsa(bowl, START, k, distribution=distribution))(
            keys
        )
        return jnp.mean(found.grads, 0), jnp.mean(jnp.sum(found.grads**2, 1))

    mean, second = moments(jax.random.split(KEY, 20_000))
    gradient = CURVATURES * START
    off = jnp.linalg.norm(mean - gradient) / jnp.linalg.norm(gradient)
    assert off <= 0.09
    assert abs(second / jnp.sum(gradient**2) - square) <= tolerance


def test_samples_are_averaged_and_each_has_a_direction_of_its_own():
    found = spsa(bowl, START, KEY, num_samples=3)
    total = jnp.zeros(100)
    for i, slope in enumerate(found.slopes):
        z = estimators.direction_like(jax.random.fold_in(KEY, i), START)
        wanted = (bowl(START + 1e-3 * z) - bowl(START - 1e-3 * z)) / 2e-3
        np.testing.assert_allclose(slope, wanted, rtol=1e-3)
        total += slope * z
    np.testing.assert_allclose(found.grads, total / 3, rtol=1e-5, atol=1e-5)
    assert len({float(slope) for slope in found.slopes}) == 3


def test_one_side_costs_the_loss_at_the_parameters_once_and_is_biased():
    """(L(w + eps z) - L(w)) / eps = z g + eps z A z / 2."""
    sides = [spsa(bowl, START, KEY, eps=0.1, antithetic=both) for both in (False, True)]
    assert sides[0].value == bowl(START)
    z = estimators.direction_like(jax.random.fold_in(KEY, 0), START)
    np.testing.assert_allclose(sides[1].slopes[0], z @ (CURVATURES * START), rtol=1e-4)
    curved = 0.05 * jnp.sum(CURVATURES * z**2)
    np.testing.assert_allclose(
        sides[0].slopes - sides[1].slopes, curved[None], rtol=1e-3
    )
    # Mean of both sides: the loss, and as much again of the curvature.
    np.testing.assert_allclose(sides[1].value, bowl(START) + 0.1 * curved, rtol=1e-4)


@functools.partial(jax.jit, static_argnames="distribution")
def estimate(params, batch, key, distribution="normal"):
    return spsa(network, params, key, *batch, num_samples=2, distribution=distribution)


def test_a_key_gives_one_estimate_and_another_key_another():
    one, same, other = (
        estimate(PARAMS, BATCH, key) for key in (KEY, KEY, jax.random.fold_in(KEY, 1))
    )
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert bool(jnp.all(one.grads["out"] != other.grads["out"]))
    # Leaves of one shape are not moved alike.
    z = estimators.direction_like(KEY, {"a": jnp.zeros(1000), "b": jnp.zeros(1000)})
    assert abs(np.corrcoef(z["a"], z["b"])[0, 1]) < 0.1


def test_bfloat16_parameters_are_moved_in_float32():
    """In bfloat16 77.5 % of weights of size 1 do not feel 0.001."""
    w = jax.random.normal(KEY, (20_000,)).astype(jnp.bfloat16)
    z = estimators.direction_like(jax.random.key(1), w)
    assert z.dtype == jnp.float32
    assert bool(jnp.all(estimators.shifted(w, z, 1e-3) != w.astype(jnp.float32)))
    rounded = estimators.shifted(w, z, 1e-3, compute_dtype=jnp.bfloat16)
    assert abs(jnp.mean(rounded == w) - 0.775) < 0.015

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def slope(w, eps, dtype):
        def loss(w):
            return jnp.sum(jnp.sin(w.astype(jnp.float32))) / 100

        found = spsa(loss, w, KEY, eps=eps, compute_dtype=dtype)
        assert found.grads.dtype == w.dtype
        return found.slopes[0]

    wide = slope(w.astype(jnp.float32), 1e-3, None)
    assert slope(w, 1e-3, None) == wide
    np.testing.assert_allclose(slope(w, 0.05, jnp.bfloat16), wide, rtol=0.05)


@pytest.mark.parametrize(
    ("dtype", "eps", "drift"), [("float32", 1e-3, 6e-7), ("bfloat16", 1e-2, 3.9e-2)]
)
def test_a_walk_to_and_fro_drifts_and_is_not_how_it_is_done(dtype, eps, drift):
    """100 times +eps, -2 eps, +eps, as the authors' code does it."""
    start = jax.random.normal(KEY, (10_000,)).astype(dtype)

    @jax.jit
    def walk(w):
        def to_and_fro(t, w):
            z = jax.random.normal(jax.random.fold_in(KEY, t), w.shape, w.dtype)
            for by in (1, -2, 1):
                w = jax.lax.optimization_barrier((w + by * eps * z).astype(w.dtype))
            return w

        return jax.lax.fori_loop(0, 100, to_and_fro, w)

    end, start = (np.asarray(w, np.float64) for w in (walk(start), start))
    found = np.linalg.norm(end - start) / np.linalg.norm(start)
    assert found == pytest.approx(drift, rel=0.2)


@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-5])
def test_rounding_of_the_loss_over_the_distance_is_the_error_of_a_slope(eps):
    x = 1.5 * START  # a loss of 312, slopes of 66
    found = jax.jit(functools.partial(spsa, bowl, num_samples=64, eps=eps))(x, KEY)
    z = [
        estimators.direction_like(jax.random.fold_in(KEY, i), x)
        for i in range(len(found.slopes))
    ]
    wanted = np.asarray(z, np.float64) @ np.asarray(CURVATURES * x, np.float64)
    error = np.sqrt(np.mean((found.slopes - wanted) ** 2))
    # Got 0.4 of it; relative errors of 2e-6, 2e-4 and 2e-2.
    assert error < 0.6 * np.spacing(np.float32(bowl(x))) / eps


def test_fifty_steps_of_any_chain_are_walked_again_from_their_slopes():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optimizers.adamw(1e-2))

    def step(carry, t):
        params, state = carry
        key = jax.random.fold_in(KEY, t)
        found = spsa(network, params, key, *BATCH, num_samples=2)
        updates, state = tx.update(found.grads, state, params)
        return (optax.apply_updates(params, updates), state), (
            found.slopes,
            found.value,
        )

    def again(carry, logged):
        t, slopes = logged
        params, state = carry
        grads = estimators.spsa_gradient(params, jax.random.fold_in(KEY, t), slopes)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.asarray, PARAMS)
    start, steps = (params, tx.init(params)), jnp.arange(50)
    (wanted, _), (slopes, values) = jax.jit(lambda c: jax.lax.scan(step, c, steps))(
        start
    )
    (got, _), _ = jax.jit(lambda c, s: jax.lax.scan(again, c, (steps, s)))(
        start, slopes
    )
    jax.tree.map(same_bits.require, got, wanted)
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    ("axis_type", "distribution"),
    [
        (AxisType.Auto, "normal"),
        (AxisType.Explicit, "normal"),
        (AxisType.Explicit, "rademacher"),
    ],
)
def test_on_a_mesh_the_estimate_is_that_of_one_device(axis_type, distribution):
    wanted = jax.block_until_ready(estimate(PARAMS, BATCH, KEY, distribution))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)

    def put(tree, *spec):
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda x: jax.device_put(x, place), tree)

    params = {
        "in": {
            "bias": put(PARAMS["in"]["bias"], "model"),
            "kernel": put(PARAMS["in"]["kernel"], None, "model"),
        },
        "out": put(PARAMS["out"], None, None),
    }
    with jax.set_mesh(mesh):
        batch = put(BATCH, "data")
        got = jax.block_until_ready(estimate(params, batch, put(KEY), distribution))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), got, wanted
    )
    if axis_type == AxisType.Explicit:
        kernel = got.grads["in"]["kernel"]
        assert kernel.sharding.spec == PartitionSpec(None, "model")


BAD = {
    "eps must be above 0, got 0": (ValueError, {"eps": 0.0}),
    "num_samples must be an integer of 1 or more, got 0": (
        ValueError,
        {"num_samples": 0},
    ),
    "must be 'normal' or 'rademacher', got 'cauchy'": (
        ValueError,
        {"distribution": "cauchy"},
    ),
    "eps=0.001 is below the resolution of bfloat16, 0.0078125, so most entries of leaf"
    " 'w'": (ValueError, {"compute_dtype": jnp.bfloat16}),
    "eps=1e-08 is below the resolution of float32": (ValueError, {"eps": 1e-8}),
    "leaf 'steps' is int32": (
        TypeError,
        {"params": {"steps": jnp.zeros((), jnp.int32)}},
    ),
    "typed key, as of jax.random.key(0), got uint32[2]": (
        TypeError,
        {"key": jax.random.PRNGKey(0)},
    ),
    "got key<fry>[2]": (TypeError, {"key": jax.random.split(KEY)}),
    "one number in float32 or wider, got float32[2]": (
        TypeError,
        {"loss": lambda p: p["w"]},
    ),
    "one number in float32 or wider, got bfloat16[]": (
        TypeError,
        {"loss": lambda p: p["w"].sum().astype(jnp.bfloat16)},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    error, changes = BAD[message]
    arguments = {
        "loss": lambda p: jnp.sum(p["w"]),
        "params": {"w": jnp.ones(2)},
        "key": KEY,
        **changes,
    }
    with pytest.raises(error, match=re.escape(message)):
        spsa(**arguments)


def test_slopes_are_a_vector():
    with pytest.raises(ValueError, match=re.escape("one or more, got ()")):
        estimators.spsa_gradient(START, KEY, jnp.zeros(()))
