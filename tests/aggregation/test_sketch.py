"""Sketches: right on average, linear, as long as promised, the same on every device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import aggregation

KEY = jax.random.key(5)
KINDS = ("count", "gaussian", "srht")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
DRAWS, D, S = 20_000, 20, 5


def tree(dtype=np.float32):
    """Twenty entries in three leaves."""
    x = np.cos(np.arange(D)).astype(dtype)
    return {"a": x[:12].reshape(3, 4), "b": x[12], "c": x[13:]}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


sketch = jax.jit(aggregation.sketch, static_argnums=(2, 3))
desketch = jax.jit(aggregation.desketch, static_argnums=3)


@functools.cache
def there_and_back(kind):
    """Moments of R^T R x over many keys."""

    def one(key):
        x = tree()
        found = desketch(key, sketch(key, x, S, kind), x, kind)
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(found)])

    def moments(keys):
        found = jax.vmap(one)(keys)
        return jnp.mean(found, 0), jnp.mean(jnp.sum(found**2, 1))

    mean, square = jax.jit(moments)(jax.random.split(KEY, DRAWS))
    return np.asarray(mean), float(square)


@EVERY_KIND
def test_the_mean_over_keys_is_what_was_sent(kind):
    mean, _ = there_and_back(kind)
    x = flat(tree())
    assert np.linalg.norm(mean - x) < 0.02 * np.linalg.norm(x)


@EVERY_KIND
def test_what_comes_back_is_longer_by_the_stated_factor(kind):
    _, square = there_and_back(kind)
    filled = 32
    exact = {
        "gaussian": (D + S + 1) / S,
        # Each other entry falls on the same number with the chance 1 / s.
        "count": 1 + (D - 1) / S,
        # R R^T is a multiple of one; and here are only the entries that are there.
        "srht": filled / S * (1 - (filled - D) / filled * (1 - S / filled)),
    }[kind]
    ratio = square / np.sum(flat(tree()) ** 2)
    assert ratio == pytest.approx(exact, rel=0.02)


@EVERY_KIND
def test_the_sketch_of_a_sum_is_the_sum_of_the_sketches(kind):
    with jax.enable_x64(True):
        x, y = tree(np.float64), jax.tree.map(np.sin, tree(np.float64))
        both = jax.tree.map(lambda x, y: 2 * x - y, x, y)
        parts = 2 * sketch(KEY, x, S, kind) - sketch(KEY, y, S, kind)
        np.testing.assert_allclose(sketch(KEY, both, S, kind), parts, atol=1e-13)
        # <R x, z> = <x, R^T z>: the way back is the transpose.
        z = jnp.linspace(-1, 2, S)
        back = flat(desketch(KEY, z, x, kind))
        np.testing.assert_allclose(
            np.dot(sketch(KEY, x, S, kind), z), np.dot(flat(x), back), rtol=1e-12
        )


def test_whole_numbers_in_a_count_sketch_add_up_exactly():
    x = jax.tree.map(lambda x: np.round(50 * x), tree())
    y = jax.tree.map(lambda x: np.round(70 * x), tree())
    total = jax.tree.map(np.add, x, y)
    parts = sketch(KEY, x, S, "count") + sketch(KEY, y, S, "count")
    np.testing.assert_array_equal(sketch(KEY, total, S, "count"), parts)


@pytest.mark.parametrize("n", [1, 5, 16])
def test_an_orthogonal_sketch_gives_everything_back(n):
    x = {"w": jnp.sin(jnp.arange(1.0, n + 1)), "empty": jnp.zeros((0, 3))}
    filled = 1 << (n - 1).bit_length()
    z = sketch(KEY, x, filled, "srht")
    np.testing.assert_allclose(jnp.linalg.norm(z), jnp.linalg.norm(x["w"]), rtol=1e-6)
    back = desketch(KEY, z, x, "srht")
    np.testing.assert_allclose(back["w"], x["w"], atol=1e-6)
    assert back["empty"].shape == (0, 3)


@EVERY_KIND
def test_a_key_gives_one_matrix_and_another_key_another(kind):
    x = tree()
    np.testing.assert_array_equal(sketch(KEY, x, S, kind), sketch(KEY, x, S, kind))
    other = sketch(jax.random.fold_in(KEY, 1), x, S, kind)
    assert not np.allclose(other, sketch(KEY, x, S, kind))
    # Equal leaves do not have equal draws.
    twins = {"a": np.ones(400, np.float32), "b": -np.ones(400, np.float32)}
    assert np.abs(sketch(KEY, twins, S, kind)).max() > 1


@EVERY_KIND
def test_half_precision_is_sketched_in_float32(kind):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree())
    z = sketch(KEY, half, S, kind)
    wide = jax.tree.map(lambda x: x.astype(np.float32), half)
    np.testing.assert_array_equal(z, sketch(KEY, wide, S, kind))
    back = desketch(KEY, z, half, kind)
    assert {x.dtype for x in jax.tree.leaves(back)} == {jnp.dtype(jnp.bfloat16)}


@EVERY_KIND
def test_the_matrix_is_never_in_memory(kind):
    d, s = 4096, 256

    def both(key, x):
        return aggregation.desketch(key, aggregation.sketch(key, x, s, kind), x, kind)

    compiled = jax.jit(both).lower(KEY, jax.ShapeDtypeStruct((d,), jnp.float32))
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * d * s / 8


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@EVERY_KIND
def test_on_a_mesh_it_equals_one_device(kind, axis_type):
    x = {"a": np.sin(np.arange(64, dtype=np.float32)).reshape(16, 4), "b": np.ones(3)}
    x["b"] = x["b"].astype(np.float32)
    z = sketch(KEY, x, S, kind)
    back = desketch(KEY, z, x, kind)
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("devices"))
        cut = {"a": jax.device_put(x["a"], place), "b": jnp.asarray(x["b"])}
        got = jax.block_until_ready(sketch(KEY, cut, S, kind))
        np.testing.assert_allclose(got, z, atol=1e-5)
        found = jax.block_until_ready(desketch(KEY, got, cut, kind))
        np.testing.assert_allclose(flat(found), flat(back), atol=1e-5)
        if axis_type == AxisType.Explicit:
            assert found["a"].sharding.is_equivalent_to(place, 2)


BAD = {
    "sketch: key must be one typed key": (TypeError, {"key": 0}),
    "sketch: size must be 1 or more, got 0": (ValueError, {"size": 0}),
    "sketch: size must be an integer, got 2.0": (TypeError, {"size": 2.0}),
    "at most 32 with 'srht', got 33": (ValueError, {"size": 33, "kind": "srht"}),
    "sketch: kind must be one of": (ValueError, {"kind": "sparse"}),
    "sketch: the tree has no leaves": (ValueError, {"tree": {}}),
    "leaf 'w' is of int32; workers send floats": (
        TypeError,
        {"tree": {"w": np.arange(4, dtype=np.int32)}},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    error, changes = BAD[message]
    arguments = {"key": KEY, "tree": tree(), "size": S, **changes}
    with pytest.raises(error, match=re.escape(message)):
        aggregation.sketch(**arguments)


@EVERY_KIND
def test_what_numpy_has_in_float64_is_taken_as_jax_takes_it(kind):
    x = np.ones(4)
    z = aggregation.sketch(KEY, x, 2, kind)
    back = aggregation.desketch(KEY, np.asarray(z, float), x, kind)
    assert z.dtype == back.dtype == jnp.float32


def test_a_sketch_of_something_else_is_named():
    with pytest.raises(ValueError, match=re.escape("shape (s,), got (2, 3)")):
        aggregation.desketch(KEY, jnp.ones((2, 3)), tree())
    with pytest.raises(ValueError, match="desketch: size must be 1 or more and at"):
        aggregation.desketch(KEY, jnp.ones(64), tree(), "srht")
