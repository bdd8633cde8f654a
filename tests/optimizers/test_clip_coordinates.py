"""Coordinate-wise clipping: how many entries, to what, where in the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers, sharding
from optlab.optimizers import _clip_coordinates as clip
from tests.optimizers import trajectories

G = jnp.array([0.1, -5.0, 0.3, -0.2, 2.0])


def clipped(x, *fraction, **more):
    tx = optimizers.clip_coordinates(*fraction, **more)
    return jax.jit(lambda x: tx.update(x, tx.init(x))[0])(x)


def by_sorting(x, k):
    tau = np.sort(np.abs(x), axis=None)[::-1][k]
    return np.clip(x, -tau, tau)


def test_the_largest_entries_come_down_to_the_next_one():
    want = np.array([0.1, -2.0, 0.3, -0.2, 2.0], np.float32)
    np.testing.assert_array_equal(clipped(G, 0.2), want)
    # A quantile that interpolates gives 2.6, and no entry of that size.
    between = np.quantile(np.abs(G), 0.8)
    assert between == pytest.approx(2.6)
    assert np.abs(clipped(G, 0.2)).max() == 2.0
    np.testing.assert_array_equal(clipped(G, 0.4), np.clip(G, -0.3, 0.3))


def test_nothing_to_clip_is_the_identity():
    for x, fraction in ((G, 0), (G, 0.19), (G[:0], 0.5), (G[0], 0.9)):
        for per in ("leaf", "tree"):
            np.testing.assert_array_equal(clipped(x, fraction, per=per), x)
    assert clipped({}, 0.5, per="tree") == {}


@pytest.mark.parametrize(
    ("size", "fraction", "count"), [(100, 0.29, 29), (1000, 0.007, 7), (10, 0.99, 9)]
)
def test_the_count_is_that_of_the_written_fraction(size, fraction, count):
    # In binary 0.29 * 100 is below 29.
    x = jnp.asarray(np.random.default_rng(0).permutation(size) + 1.0)
    got = clipped(x, fraction)
    assert np.sum(got != x) == count
    np.testing.assert_array_equal(got, by_sorting(x, count))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_thresholds_are_exact_in_every_dtype(dtype):
    with jax.enable_x64(dtype == "float64"):
        (x,) = trajectories.gradients((7, 11), steps=1)
        x = jnp.asarray(x * 1e-3, dtype)
        got = clipped({"x": x, "y": 2 * x}, 0.1)
        assert got["x"].dtype == x.dtype
        wide = np.asarray(x, np.float64)
        np.testing.assert_array_equal(got["x"], by_sorting(wide, 7))
        np.testing.assert_array_equal(got["y"], by_sorting(2 * wide, 7))


def test_one_threshold_for_the_tree_or_one_for_each_leaf():
    tree = {"large": 100 * G, "small": G, "empty": G[:0]}
    got = clipped(tree, 0.2, per="tree")
    # 2 of the 10 entries, both in the large leaf.
    np.testing.assert_array_equal(got["large"], by_sorting(tree["large"], 2))
    np.testing.assert_array_equal(got["small"], G)
    each = clipped(tree, 0.2)
    np.testing.assert_array_equal(each["large"], 100 * clipped(G, 0.2))
    np.testing.assert_array_equal(each["small"], clipped(G, 0.2))


def test_ties_zeros_and_what_is_not_finite():
    # Three are as large as the next one: none is above it.
    ties = jnp.array([3.0, -3.0, 3.0, 1.0, -0.0])
    np.testing.assert_array_equal(clipped(ties, 0.4), ties)
    rows = jnp.zeros(10).at[3].set(5.0)
    np.testing.assert_array_equal(clipped(rows, 0.1), 0 * rows)
    bad = jnp.array([1.0, jnp.inf, 2.0, -jnp.inf, 0.5])
    np.testing.assert_array_equal(clipped(bad, 0.4), [1.0, 2.0, 2.0, -2.0, 0.5])
    nan = jnp.array([1.0, jnp.nan, 2.0, -3.0, 0.5])
    np.testing.assert_array_equal(clipped(nan, 0.4), [1.0, jnp.nan, 2.0, -2.0, 0.5])
    np.testing.assert_array_equal(clipped(nan * jnp.nan, 0.4), nan * jnp.nan)


def test_a_fixed_threshold_is_optax_s_and_may_be_traced():
    want, _ = optax.clip(0.25).update(G, optax.EmptyState())
    np.testing.assert_array_equal(clipped(G, threshold=0.25), want)
    traced = jax.jit(lambda t: clipped(G, threshold=t))(0.25)
    np.testing.assert_array_equal(traced, want)


def test_before_the_momentum_or_behind_the_rate():
    clip, sgd = optimizers.clip_coordinates(0.2), optax.sgd(1.0, momentum=0.9)
    grads = [np.asarray(G), -np.asarray(G)[::-1]]
    first, last = (
        trajectories.parameters(tx, jnp.zeros(5), grads)[0]
        for tx in (optax.chain(clip, sgd), optax.chain(sgd, clip))
    )
    small = [by_sorting(g, 1) for g in grads]
    np.testing.assert_allclose(first[1], -(1.9 * small[0] + small[1]), rtol=1e-6)
    u = by_sorting(-(0.9 * grads[0] + grads[1]), 1)
    np.testing.assert_allclose(last[1], -small[0] + u, rtol=1e-6)
    assert np.abs(first[1] - last[1]).max() > 0.1


def test_masks_choose_leaves():
    tree, mask = {"a": G, "b": G}, {"a": True, "b": False}
    got = clipped(tree, 0.2, mask=mask)
    np.testing.assert_array_equal(got["a"], clipped(G, 0.2))
    np.testing.assert_array_equal(got["b"], G)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_on_a_mesh_entries_are_those_of_one_device_and_counts_are_all_that_is_sent(
    axis_type,
):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    (g,) = trajectories.gradients((16, 8), steps=1)
    place = NamedSharding(mesh, PartitionSpec("data"))

    def step(tree):
        return clipped(tree, 0.1), clipped(tree, 0.1, per="tree")

    kinds = []
    for layers in (2, 4):
        tree = {f"{i}": (1 + i) * g for i in range(layers)}
        cut = jax.device_put(tree, place)
        with jax.set_mesh(mesh):
            if layers == 2:
                jax.tree.map(
                    np.testing.assert_array_equal, jax.jit(step)(cut), step(tree)
                )
            found = sharding.collectives(step, cut)
        kinds.append(found.counts)
        # At each of the 31 bits four bytes a leaf, twice round a ring, in both scopes.
        assert found.bytes <= 2 * 2 * 31 * 4 * layers
        assert found.counts.keys() == {"all_reduce"}
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"fraction": 1.0}, ValueError, r"at least 0 and below 1, got 1\.0"),
        ({"fraction": -0.1}, ValueError, r"at least 0 and below 1, got -0\.1"),
        ({"fraction": float("nan")}, ValueError, "below 1, got nan"),
        ({"fraction": jnp.ones(())}, TypeError, "fraction must be a number.*static_a"),
        ({"fraction": 0.1, "threshold": 1.0}, ValueError, "or a threshold, not both"),
        ({"threshold": 0.0}, ValueError, r"threshold must be above 0, got 0\.0"),
        ({"per": "row"}, ValueError, r"per must be one of .*, got 'row'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(given, error, said):
    with pytest.raises(error, match=f"clip_coordinates: .*{said}"):
        optimizers.clip_coordinates(**given)


def test_more_entries_than_can_be_counted_are_refused():
    huge = {"w": jax.ShapeDtypeStruct((2**20, 2**13), jnp.bfloat16)}
    for per in ("leaf", "tree"):
        tx = optimizers.clip_coordinates(0.6, per=per)
        with pytest.raises(
            ValueError, match="leaf 'w' has 8589934592 entries, more tha"
        ):
            jax.eval_shape(tx.update, huge, optax.EmptyState())


def test_counts_of_a_tree_may_have_more_than_32_bits():
    counts = jnp.array([2**32 - 1, 2**32 - 1, 3], jnp.uint32)
    total = 2**33 + 1
    for most in (0, 2**16 - 1, 2**32 - 1, 2**32 + 5, total - 1, total, total + 1):
        assert bool(clip._more_than(most, counts)) == (total > most)
