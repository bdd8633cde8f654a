"""Aggregators: the mean when all are honest, the honest ones' when some are not."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import aggregation

FOUR = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [10.0, 10.0]])
P = PartitionSpec


def nearest_to_median(stacked, faulty):
    pivot = aggregation.coordinate_median(stacked)
    return aggregation.nearest_neighbor_mean(pivot, stacked, faulty)


RULES = {
    "nearest": nearest_to_median,
    "mixed": lambda stacked, f: jax.tree.map(
        lambda x: x[0], aggregation.mix_nearest_neighbors(stacked, f)
    ),
    "median": lambda stacked, f: aggregation.coordinate_median(stacked),
    "trimmed": aggregation.trimmed_mean,
    "krum": aggregation.krum,
    "multi": lambda stacked, f: aggregation.krum(
        stacked, f, select=len(stacked["a"]) - f
    ),
}
nearest = jax.jit(aggregation.nearest_neighbor_mean, static_argnums=2)
mixed = jax.jit(aggregation.mix_nearest_neighbors, static_argnums=1)
EVERY_RULE = pytest.mark.parametrize("name", RULES)
compiled = functools.cache(lambda name: jax.jit(RULES[name], static_argnums=1))


def workers(n=8, seed=0, scale=1.0, dtype=np.float32):
    """Honest workers near one point, as trees of stacks."""
    random = np.random.default_rng(seed)
    shapes = {"a": (8, 4), "b": (4,), "c": ()}
    return {
        name: (scale * (3 + 0.1 * random.normal(size=(n, *shape)))).astype(dtype)
        for name, shape in shapes.items()
    }


def spoiled(stacked, value, who=(0, 5)):
    def leaf(x):
        x = np.array(x)
        x[list(who)] = value if np.isscalar(value) else value * x[list(who)]
        return x

    return jax.tree.map(leaf, stacked)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def rows(stacked):
    return np.concatenate(
        [np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(stacked)], 1
    )


def test_the_far_one_of_four_points_is_left_out():
    with jax.enable_x64(True):
        four = jnp.asarray(FOUR, jnp.float64)
        third = [1 / 3, 1 / 3]
        for own in (0, 1):
            got = nearest(four[own], four, 1)
            np.testing.assert_allclose(got, third, rtol=1e-14)
        np.testing.assert_allclose(mixed(four, 1)[:3], [third] * 3, rtol=1e-14)
        plain = nearest(four[0], four, 0)
        np.testing.assert_allclose(plain, [2.75, 2.75], rtol=1e-14)
        # Worker 0 is equally near to 1 and 2, and of two the first counts.
        pair = nearest(four[0], four[:3], 1)
        np.testing.assert_array_equal(pair, [0.5, 0.0])


def test_distances_are_those_of_the_whole_tree():
    """Leaf by leaf, worker 2 would be near in 'a' and worker 1 in 'b'."""
    stacked = {"a": jnp.array([0.0, 9.0, 1.0]), "b": jnp.array([0.0, 1.0, 2.0])}
    got = nearest({"a": 0.0, "b": 0.0}, stacked, 1)
    assert (got["a"], got["b"]) == (0.5, 1.0)


def test_five_of_twenty_six_far_away_change_nothing():
    random = np.random.default_rng(3)
    sent = (0.1 * random.normal(size=(26, 7))).astype(np.float32)
    sent[[2, 7, 11, 20, 25]] = 100
    honest = np.delete(sent, [2, 7, 11, 20, 25], 0).mean(0)
    got = nearest(sent[0], sent, 5)
    np.testing.assert_allclose(got, honest, atol=1e-6)
    assert np.abs(sent.mean(0) - honest).min() > 19
    order = random.permutation(26)
    again = nearest(sent[0], sent[order], 5)
    np.testing.assert_allclose(again, got, atol=1e-6)


@EVERY_RULE
def test_rules_agree_with_a_transcription(name):
    def krum(x, f, select):
        d = ((x[:, None] - x[None]) ** 2).sum(-1) + np.diag([np.inf] * len(x))
        scores = np.sort(d, 1)[:, : len(x) - f - 2].sum(1)
        return x[np.argsort(scores, kind="stable")[:select]].mean(0)

    def near(x, own, f):
        d = np.linalg.norm(x - own, axis=1)
        return x[np.argsort(d, kind="stable")[: len(x) - f]].mean(0)

    with jax.enable_x64(True):
        stacked = workers(dtype=np.float64)
        got = flat(compiled(name)(stacked, 2))
        x = rows(stacked)
        wanted = {
            "nearest": lambda: near(x, np.median(x, 0), 2),
            "mixed": lambda: near(x, x[0], 2),
            "median": lambda: np.median(x, 0),
            "trimmed": lambda: np.sort(x, 0)[2:-2].mean(0),
            "krum": lambda: krum(x, 2, 1),
            "multi": lambda: krum(x, 2, 6),
        }[name]()
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


@EVERY_RULE
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e4])
def test_what_two_of_eight_send_leaves_the_result_among_the_honest(name, scale):
    # Spoiled are others than worker 0, for whom 'mixed' answers here.
    who, honest = (1, 5), workers(scale=scale)
    stays = np.delete(rows(honest), who, 0)
    low, high = stays.min(0), stays.max(0)
    slack = 1e-6 * np.abs(high)
    for value in (np.nan, np.inf, -np.inf, -3e30, 1e38, 0.0):
        got = flat(compiled(name)(spoiled(honest, value, who), 2))
        assert np.all(got >= low - slack) and np.all(got <= high + slack), value


@EVERY_RULE
def test_more_that_are_not_finite_than_may_be_faulty_are_seen(name):
    # The median stands any minority, and Krum asks for one neighbour less.
    most = {"median": range(2, 6), "krum": range(2, 6)}.get(name, (2, 4, 6))
    got = flat(compiled(name)(spoiled(workers(), np.nan, most), 2))
    assert np.isnan(got).all()


def test_nothing_is_near_to_what_is_not_finite():
    assert np.isnan(nearest(jnp.full(2, jnp.nan), FOUR, 1)).all()
    assert np.isnan(mixed(FOUR.at[2].set(jnp.inf), 1)[2]).all()


@EVERY_RULE
def test_half_precision_is_computed_in_float32(name):
    stacked = workers(dtype=jnp.bfloat16)
    got = compiled(name)(stacked, 2)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    wide = compiled(name)(jax.tree.map(lambda x: x.astype(np.float32), stacked), 2)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wide), strict=True):
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))


@EVERY_RULE
def test_what_numpy_has_in_float64_is_taken_as_jax_takes_it(name):
    """Outside `jax.jit` too, where a warning of JAX is an error here."""
    stacked = np.random.default_rng(0).normal(size=(8, 3))
    got = RULES[name]({"a": stacked}, 2)["a"]
    wanted = compiled(name)({"a": stacked.astype(np.float32)}, 2)["a"]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_one_worker_is_its_own_mean():
    for rule in ("nearest", "mixed", "median", "trimmed"):
        alone = workers(1)
        got = flat(RULES[rule](alone, 0))
        np.testing.assert_array_equal(got, rows(alone)[0])


def test_long_parameters_that_are_nearly_the_same_are_told_apart():
    """In float32 |x|^2 + |y|^2 - 2 <x, y> is all rounding here."""
    apart = np.array([0.0, 1.0, 2.0, 3.0, 8.0, 20.0, 21.0], np.float32)
    stacked = np.full((7, 1000), 1000, np.float32) + apart[:, None] * np.float32(2**-9)
    got = mixed(stacked, 3)
    np.testing.assert_allclose((got[0] - 1000) * 2**9, 1.5, rtol=0.04)
    krum = jax.jit(aggregation.krum, static_argnums=1)
    assert (krum(stacked, 2) == stacked[1]).all()


@EVERY_RULE
def test_it_maps_over_further_axes(name):
    many = jax.tree.map(lambda *x: np.stack(x), workers(), workers(seed=1))
    got = jax.jit(jax.vmap(lambda stacked: RULES[name](stacked, 2)))(many)
    one = compiled(name)(workers(seed=1), 2)
    np.testing.assert_allclose(flat(jax.tree.map(lambda x: x[1], got)), flat(one), 1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@EVERY_RULE
def test_on_a_mesh_they_equal_one_device(name, axis_type):
    stacked = spoiled(workers(), -5.0, (1, 5))
    rule = mixed if name == "mixed" else compiled(name)
    wanted = rule(stacked, 2)
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))
    by_worker = dict.fromkeys("abc", P("devices"))
    by_entry = {"a": P(None, "devices"), "b": P(None), "c": P()}
    with jax.set_mesh(mesh):
        for specs in (by_worker, by_entry):
            cut = {
                k: jax.device_put(x, NamedSharding(mesh, specs[k]))
                for k, x in stacked.items()
            }
            got = jax.block_until_ready(rule(cut, 2))
            np.testing.assert_allclose(flat(got), flat(wanted), rtol=2e-6)
            if axis_type == AxisType.Explicit:
                for k, x in got.items():
                    spec = specs[k] if name == "mixed" else specs[k][1:]
                    place = NamedSharding(mesh, P(*spec))
                    assert x.sharding.is_equivalent_to(place, x.ndim), k


STEPS, WORKERS, ATTACKERS = 60, 8, (2, 6)
FAULTS = ("none", "flip", "stale", "nan")


def logistic_data():
    """Two classes with overlap; each worker has more of one class than the other."""
    random = np.random.default_rng(0)
    y = (random.random((WORKERS, 40)) < np.linspace(0.35, 0.65, WORKERS)[:, None]) * 1.0
    x = random.normal(size=(WORKERS, 40, 6)) + (2 * y[..., None] - 1) * 0.6
    return x.astype(np.float32), y.astype(np.float32)


@functools.cache
def trained(rule):
    """A run, by fault: eight workers send slow averages of their gradients."""
    x, y = logistic_data()
    momentum = optax.ema(0.9, debias=False)

    def gradient(w, x, y):
        return jax.grad(
            lambda w: jnp.mean(optax.sigmoid_binary_cross_entropy(x @ w["a"], y))
        )(w)

    def run(fault):
        w = {"a": jnp.zeros(6)}
        lies = jnp.zeros(WORKERS, bool).at[jnp.array(ATTACKERS)].set(True)[:, None]
        first = jax.vmap(gradient, (None, 0, 0))(w, x, y)["a"]

        def step(carry, _):
            w, state = carry
            g = jax.vmap(gradient, (None, 0, 0))(w, x, y)
            m, state = jax.vmap(momentum.update)(g, state)
            kinds = (m["a"], -8 * m["a"], 8 * first, jnp.full_like(first, jnp.nan))
            sent = {"a": jnp.where(lies, jax.lax.select_n(fault, *kinds), m["a"])}
            move = RULES[rule](sent, 2) if rule in RULES else {"a": sent["a"].mean(0)}
            return (jax.tree.map(lambda w, u: w - u, w, move), state), None

        start = jax.vmap(momentum.init)({"a": jnp.zeros((WORKERS, 6))})
        (w, _), _ = jax.lax.scan(step, (w, start), None, length=STEPS)
        return jnp.mean((x @ w["a"] > 0) == (y > 0.5))

    return np.asarray(jax.jit(jax.vmap(run))(jnp.arange(len(FAULTS))))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "mixed"])
def test_with_two_faulty_workers_of_eight_training_goes_on(rule):
    clean = trained("mean")[0]
    assert clean > 0.85
    assert np.all(trained(rule) > clean - 0.03), trained(rule)


def test_with_two_faulty_workers_of_eight_the_mean_fails():
    accuracy = dict(zip(FAULTS, trained("mean"), strict=True))
    assert accuracy["flip"] < 0.3 and accuracy["nan"] < 0.6


@functools.cache
def mixed_run(mix):
    """The accuracy of worker 0, by fault, where workers exchange parameters."""
    x, y = logistic_data()
    momentum = optax.ema(0.9, debias=False)
    lies = jnp.zeros(WORKERS, bool).at[jnp.array(ATTACKERS)].set(True)[:, None]

    def gradient(w, x, y):
        return jax.grad(
            lambda w: jnp.mean(optax.sigmoid_binary_cross_entropy(x @ w, y))
        )(w)

    def run(fault):
        start = jnp.zeros((WORKERS, 6))

        def step(carry, _):
            w, state = carry
            m, state = jax.vmap(momentum.update)(jax.vmap(gradient)(w, x, y), state)
            half = w - m
            seen = jnp.broadcast_to(half[0], half.shape)
            kinds = (half, -8 * seen, 8 + start, jnp.full_like(half, jnp.nan))
            sent = jnp.where(lies, jax.lax.select_n(fault, *kinds), half)
            return (MIXES[mix](sent), state), None

        (w, _), _ = jax.lax.scan(
            step, (start, jax.vmap(momentum.init)(start)), None, length=STEPS
        )
        return jnp.mean((x @ w[0] > 0) == (y > 0.5))

    return np.asarray(jax.jit(jax.vmap(run))(jnp.arange(len(FAULTS))))


MIXES = {
    "nearest": lambda sent: aggregation.mix_nearest_neighbors(sent, 2),
    "mean": lambda sent: jnp.broadcast_to(sent.mean(0), sent.shape),
}


def test_workers_that_mix_their_parameters_learn_in_spite_of_two():
    clean = mixed_run("mean")[0]
    assert clean > 0.85
    assert np.all(mixed_run("nearest") > clean - 0.03), mixed_run("nearest")
    assert dict(zip(FAULTS, mixed_run("mean"), strict=True))["nan"] < 0.6


BAD = {
    "leaf 'b' has shape (3,); the first axis": (
        ValueError,
        lambda: aggregation.coordinate_median({"a": np.ones((4, 2)), "b": np.ones(3)}),
    ),
    "leaf 'a' has shape ();": (
        ValueError,
        lambda: aggregation.coordinate_median({"a": np.float32(1)}),
    ),
    "no leaves": (ValueError, lambda: aggregation.coordinate_median({})),
    "leaf 'a' is of int32; workers send floats": (
        TypeError,
        lambda: aggregation.trimmed_mean({"a": np.ones((4, 2), np.int32)}, 1),
    ),
    "trimmed_mean: with 4 workers faulty must be 0 or more and at most 1, got 2": (
        ValueError,
        lambda: aggregation.trimmed_mean(FOUR, 2),
    ),
    "mix_nearest_neighbors: with 4 workers faulty must be 0 or more": (
        ValueError,
        lambda: aggregation.mix_nearest_neighbors(FOUR, -1),
    ),
    "faulty must be an integer, got 0.5": (
        TypeError,
        lambda: aggregation.trimmed_mean(FOUR, 0.5),
    ),
    "krum: with 4 workers faulty must be 0 or more and at most 0, got 1": (
        ValueError,
        lambda: aggregation.krum(FOUR, 1),
    ),
    "krum: needs 3 workers or more, got 2": (
        ValueError,
        lambda: aggregation.krum(FOUR[:2], 0),
    ),
    "krum: select must be an integer, got 1.5": (
        TypeError,
        lambda: aggregation.krum(FOUR, 0, select=1.5),
    ),
    "faulty must be an integer, got True": (
        TypeError,
        lambda: aggregation.mix_nearest_neighbors(FOUR, True),
    ),
    "with 1 workers faulty must be 0 or more and at most 0, got 1": (
        ValueError,
        lambda: aggregation.trimmed_mean(FOUR[:1], 1),
    ),
    "leaf 'a' has shape (0, 2);": (
        ValueError,
        lambda: aggregation.krum({"a": np.ones((0, 2))}, 0),
    ),
    "leaf 'a' is of complex64; workers send floats": (
        TypeError,
        lambda: aggregation.krum({"a": np.ones((4, 2), np.complex64)}, 0),
    ),
    "krum: select must be 1 to 4": (
        ValueError,
        lambda: aggregation.krum(FOUR, 0, select=5),
    ),
    "leaf '' has shape (3,) in own and (2,) in each worker": (
        ValueError,
        lambda: aggregation.nearest_neighbor_mean(np.ones(3), FOUR, 1),
    ),
    "leaf 'b' has shape None in own and (2,)": (
        ValueError,
        lambda: aggregation.nearest_neighbor_mean({}, {"b": FOUR}, 1),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    error, call = BAD[message]
    with pytest.raises(error, match=re.escape(message)):
        call()
