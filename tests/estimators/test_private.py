"""Private gradients: what is clipped, how much noise, how much memory, on any mesh."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import estimators, sharding

KEY = jax.random.key(7)
ROWS = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0], [0.0, 0.0]])
clipped_sum = estimators.clipped_gradient_sum
PARAMS = {
    "bias": np.linspace(-1, 1, 4, dtype=np.float32),
    "kernel": np.sin(np.arange(24, dtype=np.float32)).reshape(6, 4),
}
X = np.cos(np.arange(16 * 6, dtype=np.float32)).reshape(16, 6)
Y = np.sin(np.arange(16 * 4, dtype=np.float32)).reshape(16, 4)


def layer(params, example):
    x, y = example
    return jnp.sum((jnp.tanh(x @ params["kernel"] + params["bias"]) - y) ** 2)


@functools.partial(jax.jit, static_argnames=("noise_multiplier", "microbatch_size"))
def private(params, batch, key=KEY, noise_multiplier=0.5, microbatch_size=8):
    return estimators.private_gradient(
        layer,
        params,
        batch,
        key,
        clip=0.7,
        noise_multiplier=noise_multiplier,
        batch_size=16,
        microbatch_size=microbatch_size,
    )


def require_close(got, wanted, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), got, wanted
    )


@pytest.mark.parametrize("microbatch_size", [1, 2, 4, None])
def test_each_row_is_clipped_on_its_own_over_the_whole_tree(microbatch_size):
    """Clipping the mean of a microbatch would give other sums."""

    def by_parts(params, row):
        return params["a"] * row[0] + params["b"] * row[1]

    with jax.enable_x64(True):
        found = clipped_sum(
            by_parts,
            {"a": jnp.zeros(()), "b": jnp.zeros(())},
            jnp.asarray(ROWS),
            clip=1.0,
            microbatch_size=microbatch_size,
        )
        got = [found.grads["a"], found.grads["b"]]
        np.testing.assert_allclose(got, [0.9, 2.2], rtol=1e-14)
        np.testing.assert_allclose(found.norms, [5, 0.5, 2, 0], rtol=1e-14)
        assert found.clipped == 2 and found.clipped.dtype == jnp.int32
        np.testing.assert_array_equal(found.values, 0)


def test_without_noise_a_step_of_descent_is_the_published_one():
    with jax.enable_x64(True):
        tx, w = optax.sgd(0.1), jnp.zeros(2)
        found = estimators.private_gradient(
            jnp.dot,
            w,
            jnp.asarray(ROWS[:3]),
            KEY,
            clip=1.0,
            noise_multiplier=0.0,
            batch_size=3,
        )
        updates, _ = tx.update(found.grads, tx.init(w))
        np.testing.assert_allclose(updates, [-0.03, -0.22 / 3], rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_clip_and_noise_it_is_the_gradient_of_the_mean(dtype):
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
    batch = (jnp.asarray(X, dtype), jnp.asarray(Y, dtype))

    @jax.jit
    def unclipped(params):
        return estimators.private_gradient(
            layer,
            params,
            batch,
            KEY,
            clip=math.inf,
            noise_multiplier=0.0,
            batch_size=16,
            microbatch_size=4,
        )

    found = unclipped(params)

    def mean(params):
        return jnp.mean(jax.vmap(layer, (None, 0))(params, batch).astype(float))

    assert {g.dtype for g in jax.tree.leaves(found.grads)} == {jnp.dtype(dtype)}
    wanted = jax.jit(jax.grad(mean))(params)
    gap = optax.tree.norm(jax.tree.map(lambda a, b: a - b, found.grads, wanted))
    eps = float(jnp.finfo(dtype).eps)
    assert gap.astype(float) <= 2 * eps * optax.tree.norm(wanted).astype(float)
    assert found.clipped == 0


def test_the_sum_of_bfloat16_gradients_does_not_stall():
    """In bfloat16 adding 1 to 256 gives 256."""
    found = clipped_sum(
        jnp.dot,
        jnp.zeros(1, jnp.bfloat16),
        jnp.ones((1000, 1), jnp.bfloat16),
        clip=2.0,
        microbatch_size=1,
    )
    assert found.grads == 1000 and found.grads.dtype == jnp.float32


def test_noise_has_the_stated_spread_in_every_leaf_and_no_two_alike():
    zeros = {"a": jnp.zeros(100_000), "b": jnp.zeros(100_000, jnp.bfloat16)}

    def draw(key, clip=1.0, sigma=1.0):
        return estimators.noised_mean(
            zeros, key, clip=clip, noise_multiplier=sigma, batch_size=4
        )

    for clip, sigma in ((1.0, 1.0), (0.5, 2.0), (3.0, 0.2)):
        noise = draw(KEY, clip, sigma)
        assert noise["b"].dtype == jnp.bfloat16
        for leaf in jax.tree.leaves(noise):
            # The deviation of 1e5 draws has one of 1 / sqrt(2e5) = 0.22 %.
            leaf = np.asarray(leaf, np.float64)
            assert abs(leaf.std() / (sigma * clip / 4) - 1) < 0.01
            assert abs(leaf.mean()) < 4 * sigma * clip / 4 / math.sqrt(100_000)
    draws = [*jax.tree.leaves(draw(KEY)), draw(jax.random.fold_in(KEY, 1))["a"]]
    for i in range(3):
        for j in range(i):
            assert abs(np.corrcoef(draws[i], draws[j])[0, 1]) < 0.02
    jax.tree.map(np.testing.assert_array_equal, draw(KEY), draw(KEY))


def test_one_noise_a_step_whatever_the_microbatches():
    batch = (X, Y)
    whole = private(PARAMS, batch, microbatch_size=16)
    for m in (1, 4):
        require_close(private(PARAMS, batch, microbatch_size=m), whole)
    silent = private(PARAMS, batch, noise_multiplier=0.0)
    noise = jax.tree.map(lambda a, b: a - b, whole.grads, silent.grads)
    assert optax.tree.norm(noise) > 0.01
    spoken = estimators.noised_mean(
        jax.tree.map(jnp.zeros_like, PARAMS),
        KEY,
        clip=0.7,
        noise_multiplier=0.5,
        batch_size=16,
    )
    require_close(noise, spoken)


def test_an_example_that_counts_not_or_is_not_finite_adds_nothing():
    rows = np.array(
        [[3.0, 4.0], [np.nan, 0.0], [np.inf, 1.0], [0.3, 0.4], [3e30, 4e30]]
    )
    valid = np.array([True, True, True, False, True])
    found = jax.jit(lambda v: clipped_sum(jnp.dot, jnp.zeros(2), rows, clip=1, valid=v))
    found = found(valid)
    np.testing.assert_allclose(found.grads, [1.2, 1.6], rtol=1e-6)
    assert found.clipped == 2
    assert np.isnan(found.norms[1]) and not np.isfinite(found.norms[2])
    np.testing.assert_allclose(found.norms[4], 5e30, rtol=1e-6)


def test_traced_clip_and_noise_are_those_given():
    @jax.jit
    def both(clip, sigma):
        return estimators.private_gradient(
            jnp.dot,
            jnp.zeros(2),
            jnp.asarray(ROWS[:3], jnp.float32),
            KEY,
            clip=clip,
            noise_multiplier=sigma,
            batch_size=3,
        ).grads

    np.testing.assert_allclose(both(1.0, 0.0), [0.3, 2.2 / 3], rtol=1e-6)
    np.testing.assert_allclose(both(jnp.inf, 0.0), [1.1, 6.4 / 3], rtol=1e-6)


def test_sums_keep_the_precision_of_each_leaf_whatever_that_of_the_clip():
    def by_parts(params, row):
        return params["a"] * row[0] + params["b"] * row[1]

    with jax.enable_x64(True):
        wide = {"a": jnp.zeros(()), "b": jnp.zeros((), jnp.float32)}
        found = clipped_sum(by_parts, wide, jnp.asarray(ROWS), clip=np.float64(1))
        assert found.grads["a"].dtype == jnp.float64
        assert found.grads["b"].dtype == jnp.float32
        np.testing.assert_allclose(found.grads["a"], 0.9, rtol=1e-7)
    # What NumPy has in float64, and Python's numbers, are taken as JAX takes them.
    found = clipped_sum(by_parts, {"a": 0.0, "b": np.zeros(())}, ROWS, clip=1)
    assert {g.dtype for g in found.grads.values()} == {jnp.dtype(jnp.float32)}
    noised = estimators.noised_mean(
        np.zeros(3), KEY, clip=1, noise_multiplier=1, batch_size=1
    )
    assert noised.dtype == jnp.float32


def test_memory_is_that_of_a_microbatch_whatever_the_batch():
    def temporary(size, microbatch_size):
        def run(w, batch):
            return clipped_sum(
                lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2),
                w,
                batch,
                clip=1.0,
                microbatch_size=microbatch_size,
            ).grads

        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 32), (size, 64))]
        compiled = jax.jit(run).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    gradient = 4 * 64 * 32
    small, large = temporary(32, 8), temporary(2048, 8)
    # What grows is a few numbers for each example.
    assert large - small < 2048 * 16
    assert large < 40 * gradient
    assert temporary(512, None) > 256 * gradient


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_the_gradient_and_its_noise_are_those_of_one_device(axis_type):
    wanted = private(PARAMS, (X, Y))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)

    def put(tree, *spec):
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda x: jax.device_put(x, place), tree)

    with jax.set_mesh(mesh):
        for spec in ((), (None, "model")):
            params = {
                "bias": put(PARAMS["bias"], *spec[1:]),
                "kernel": put(PARAMS["kernel"], *spec),
            }
            got = private(params, put((X, Y), "data"), put(KEY))
            require_close(got, wanted)
            if axis_type == AxisType.Explicit:
                assert jax.typeof(got.grads["kernel"]) == jax.typeof(params["kernel"])
        if axis_type == AxisType.Explicit:
            batch = put((X, Y), "data")
            sent = sharding.collectives(private, params, batch, put(KEY))
            # Norms need both halves of the parameters; the sum over data can wait.
            groups = {one.in_loop: set() for one in sent.found}
            for one in sent.found:
                groups[one.in_loop].add(one.group_size)
            assert groups == {True: {2}, False: {4}}
            with pytest.raises(ValueError, match="multiple of 4, got 2"):
                private(PARAMS, batch, microbatch_size=2)
            params["bias"] = put(PARAMS["bias"], "data")
            with pytest.raises(ValueError, match="leaf 'bias' is cut along 'data'"):
                private(params, batch)


@pytest.mark.parametrize(
    ("axis_type", "check_vma"), [(AxisType.Auto, False), (AxisType.Explicit, True)]
)
def test_devices_that_sum_by_hand_clip_each_example_and_add_the_noise_once(
    axis_type, check_vma
):
    """With the check, JAX sums a gradient to shared parameters before it is clipped."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    P = PartitionSpec

    def part(params, batch, key):
        own = clipped_sum(layer, params, batch, clip=0.7, microbatch_size=1)
        return estimators.noised_mean(
            jax.lax.psum(own.grads, "data"),
            key,
            clip=0.7,
            noise_multiplier=0.5,
            batch_size=16,
        )

    run = jax.jit(
        jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(P(), P("data"), P()),
            out_specs=P(),
            check_vma=check_vma,
        )
    )

    def put(tree, *spec):
        place = NamedSharding(mesh, P(*spec))
        return jax.tree.map(lambda x: jax.device_put(x, place), tree)

    with jax.set_mesh(mesh):
        got = run(put(PARAMS), put((X, Y), "data"), put(KEY))
        require_close(jax.block_until_ready(got), private(PARAMS, (X, Y)).grads)


BAD = {
    "clip must be above 0, got 0.0": (ValueError, {"clip": 0.0}),
    "clip must be above 0, got nan": (ValueError, {"clip": math.nan}),
    "noise_multiplier must be 0 or more": (ValueError, {"noise_multiplier": -1.0}),
    "batch_size must be above 0, got 0": (ValueError, {"batch_size": 0}),
    "clip is infinite, so no noise": (ValueError, {"clip": math.inf}),
    "must divide the 3 examples of the batch, got 2": (
        ValueError,
        {"microbatch_size": 2},
    ),
    "microbatch_size must be an integer, got 1.0": (
        TypeError,
        {"microbatch_size": 1.0},
    ),
    "clip must be one number, got the shape (2,)": (TypeError, {"clip": np.ones(2)}),
    "batch_size must be one number, got None": (TypeError, {"batch_size": None}),
    "valid must have the shape (3,), got (3, 1)": (
        ValueError,
        {"valid": np.ones((3, 1), bool)},
    ),
    "must divide the 3 examples of the batch, got 0": (
        ValueError,
        {"microbatch_size": 0},
    ),
    "typed key, as of jax.random.key(0), got int": (TypeError, {"key": 0}),
    "got uint32[2]": (TypeError, {"key": jax.random.PRNGKey(0)}),
    "got key<fry>[2]": (TypeError, {"key": jax.random.split(KEY)}),
    "'valid': (2,)": (ValueError, {"valid": np.ones(2, bool)}),
    "'batch/b': ()": (ValueError, {"batch": {"a": np.ones(3), "b": np.ones(())}}),
    "one or more": (ValueError, {"batch": np.ones((0, 2))}),
    "must be one number, got the shape (2,)": (TypeError, {"loss": jnp.multiply}),
}


@pytest.mark.parametrize("dtype", [np.complex64, np.int32])
def test_noise_is_for_floats(dtype):
    with pytest.raises(TypeError, match=f"leaf 'w' is of {dtype.__name__}; noise is"):
        estimators.noised_mean(
            {"w": np.zeros(2, dtype)}, KEY, clip=1, noise_multiplier=1, batch_size=1
        )


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    error, changes = BAD[message]
    arguments = {
        "loss": jnp.dot,
        "params": jnp.zeros(2),
        "batch": np.float32(ROWS[:3]),
        "key": KEY,
        "clip": 1.0,
        "noise_multiplier": 1.0,
        "batch_size": 3,
        **changes,
    }
    with pytest.raises(error, match=re.escape(message)):
        estimators.private_gradient(**arguments)
