"""ZO-GraSP: scores on quadratics, shares of the layers, masks, the whole protocol."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import estimators
from optlab.estimators import _zo_grasp
from tests.sharding import on_mesh

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
HALF = RANDOM.normal(size=(12, 12))
MATRIX = HALF @ HALF.T / 12 + np.diag(np.linspace(0, 4, 12))
PARAMS = {"a": RANDOM.normal(size=(4, 2)), "b": RANDOM.normal(size=4)}
PARAMS = jax.tree.map(np.float32, PARAMS)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def bowl(w):
    x = jnp.concatenate([w["a"].ravel(), w["b"]])
    return x @ jnp.asarray(MATRIX, x.dtype) @ x / 2


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def scored():
    return jax.jit(functools.partial(estimators.zo_grasp_scores, bowl, samples=32))


def test_with_as_many_evaluations_random_directions_see_less():
    """At d = 50 and 51 evaluations: 0.71 of the direction, and all of it."""
    d = samples = 50
    curvatures, point = np.linspace(1, 10, d), np.random.default_rng(3).normal(size=d)
    exact = curvatures * point + np.cos(point)

    def waves(x):
        return jnp.sum(curvatures * x**2) / 2 + jnp.sum(jnp.sin(x))

    with jax.enable_x64(True):
        x = jnp.asarray(point)
        directions = jax.jit(
            jax.vmap(
                lambda key: _zo_grasp._along_random_directions(
                    waves, x, key, 1e-4, samples
                )
            )
        )
        found = directions(jax.random.split(KEY, 40))
        found = np.asarray(found)
        mean = np.mean([cosine(g, exact) for g in found])
        assert mean == pytest.approx(math.sqrt(samples / (samples + d + 1)), abs=0.03)
        # Without the factor d: about 1 / d of the gradient.
        np.testing.assert_allclose(
            found.mean(0) @ exact / (exact @ exact), 1 / d, rtol=0.05
        )
        each = estimators.coordinatewise_value_and_grad(waves, x, mu=1e-2, chunk=d)
        assert cosine(np.asarray(each.grads), exact) > 0.9999


def test_scores_of_a_quadratic_are_those_of_its_hessian():
    """(g1 - g0) / mu = P A g0 with P the mean of u u', whatever mu is."""
    with jax.enable_x64(True):
        w = jax.tree.map(jnp.float64, PARAMS)
        run = jax.jit(functools.partial(estimators.zo_grasp_scores, bowl, samples=4000))
        scores = flat(run(w, KEY, mu=5e-3))
        assert cosine(flat(run(w, KEY, mu=0.5)), scores) > 0.999
        x, share = flat(w), np.repeat([1 / 8, 1 / 4], [8, 4])
        exact = -x * (share * (MATRIX @ (share * (MATRIX @ x))))
        assert cosine(scores, exact) > 0.98
        np.testing.assert_allclose(
            np.linalg.norm(scores), np.linalg.norm(exact), rtol=0.1
        )
        # What other directions for the second gradient would give: noise over mu.
        rough = jax.jit(
            lambda key: _zo_grasp._along_random_directions(bowl, w, key, 5e-3, 192)
        )
        one, other = (flat(rough(key)) for key in jax.random.split(KEY))
        assert np.linalg.norm(x * (other - one) / 5e-3) > 5 * np.linalg.norm(exact)


def test_in_float32_the_second_step_is_long_enough_to_be_felt():
    """The first g is about 1 / d of the gradient: mu g would be rounded off."""
    d, mu = 2000, 0.05
    curvatures = jnp.linspace(0, 10, d)
    w = jnp.asarray(RANDOM.normal(size=d), jnp.float32)

    def bowl(w):
        return jnp.mean(curvatures * w**2) / 2

    @jax.jit
    def three(w):
        rough = functools.partial(
            _zo_grasp._along_random_directions, key=KEY, mu=mu, samples=32
        )
        g = rough(bowl, w)
        # Of a linear function the differences are exact: the mean of u u' H g.
        exact = rough(lambda v: v @ (curvatures * g) / d, jnp.zeros(d))
        short = (rough(bowl, w + mu * g) - g) / mu
        scores = estimators.zo_grasp_scores(bowl, w, KEY, mu=mu, samples=32)
        return scores, -w * exact, -w * short

    scores, exact, short = map(np.asarray, three(w))
    assert cosine(scores, exact) > 0.9 > 0.5 > cosine(short, exact)


def test_scores_of_half_precision_are_float32(scored):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    got = scored(half, KEY)
    assert got["a"].dtype == jnp.float32
    wide = scored(jax.tree.map(lambda x: x.astype(jnp.float32), half), KEY)
    np.testing.assert_array_equal(flat(got), flat(wide))
    still = scored(jax.tree.map(np.zeros_like, PARAMS), KEY)
    np.testing.assert_array_equal(flat(still), 0)


def test_shares_are_those_of_the_least_scores_of_all():
    scores = {
        "a": RANDOM.normal(size=(20, 10)),
        "b": 10 * RANDOM.normal(size=(30, 10)),
        "c": RANDOM.normal(size=100),
    }
    shares = estimators.layerwise_sparsity(scores, 0.5)
    limit = np.median(
        np.abs(np.concatenate([scores["a"].ravel(), scores["b"].ravel()]))
    )
    for name in "ab":
        assert shares[name] == np.mean(np.abs(scores[name]) < limit)
    assert shares["c"] == 0 and shares["a"] > 0.8 > 0.5 > shares["b"] > 0
    assert 200 * shares["a"] + 300 * shares["b"] == pytest.approx(250)
    only = estimators.layerwise_sparsity(
        scores, 0.25, mask={"a": False, "b": False, "c": True}
    )
    assert only == {"a": 0, "b": 0, "c": 0.25}
    by_function = estimators.layerwise_sparsity(
        scores, 0.25, mask=lambda scores: {name: name == "c" for name in scores}
    )
    assert by_function == only
    for share in (0, 1):
        ends = estimators.layerwise_sparsity(scores, share)
        assert ends == {"a": share, "b": share, "c": 0}
    assert estimators.layerwise_sparsity({}, 0.5) == {}
    ties = estimators.layerwise_sparsity({"w": np.ones((2, 4))}, 0.375)
    assert ties == {"w": 0.375}


def test_masks_keep_as_many_as_they_should_and_no_entry_is_preferred():
    params = {"a": np.ones((6, 5)), "b": np.ones(4), "none": np.ones((0, 2))}
    shares = {"a": 0.9, "b": 0.25, "none": 0.5}
    draw = jax.jit(lambda key: estimators.random_masks(key, params, shares))
    many = jax.vmap(draw)(jax.random.split(KEY, 2000))
    np.testing.assert_array_equal(many["a"].sum((1, 2)), 3)
    np.testing.assert_array_equal(many["b"].sum(1), 3)
    assert many["none"].shape == (2000, 0, 2)
    # Five standard deviations of 2000 draws.
    for name, kept in (("a", 0.1), ("b", 0.75)):
        spread = 5 * math.sqrt(kept * (1 - kept) / 2000)
        np.testing.assert_allclose(many[name].mean(0), kept, atol=spread)
    ends = estimators.random_masks(KEY, params, {"a": 0, "b": 1, "none": 0})
    assert ends["a"].all() and not ends["b"].any()


def test_the_masks_decide_what_is_estimated(scored):
    shares = estimators.layerwise_sparsity(scored(PARAMS, KEY), 0.5)
    masks = estimators.random_masks(KEY, PARAMS, shares)
    assert (shares, masks["a"].sum(), masks["b"].all()) == ({"a": 0.5, "b": 0}, 4, True)
    found = estimators.coordinatewise_value_and_grad(bowl, PARAMS, mask=masks)
    np.testing.assert_array_equal(found.grads["a"] != 0, masks["a"])


@on_mesh.BOTH
def test_on_a_mesh_scores_are_those_of_one_device(axis_type):
    params = {"a": np.ones((8, 4), np.float32), "b": np.ones(3, np.float32)}

    def loss(w):
        return jnp.sum(jnp.sin(3 * w["a"])) + jnp.sum(w["b"] ** 2)

    score = jax.jit(
        functools.partial(estimators.zo_grasp_scores, loss, mu=0.2, samples=8)
    )
    wanted = score(params, KEY)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        cut = NamedSharding(mesh, PartitionSpec("data"))
        placed = {**params, "a": jax.device_put(params["a"], cut)}
        got = jax.block_until_ready(score(placed, KEY))
        for name in "ab":
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-3, atol=1e-3)
        assert estimators.layerwise_sparsity(got, 0.5) == {"a": 0.5, "b": 0.0}


def scores(**changes):
    given = {"loss": bowl, "params": PARAMS, "key": KEY, **changes}
    return estimators.zo_grasp_scores(**given)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: scores(key=0), TypeError, "zo_grasp_scores: key must be one typed"),
        (lambda: scores(mu=0.0), ValueError, "zo_grasp_scores: mu must be above 0"),
        (lambda: scores(samples=0), ValueError, "samples must be .* got 0"),
        (
            lambda: scores(params={"w": np.ones(2, np.int32)}, loss=lambda w: 0.0),
            TypeError,
            "leaf 'w' is int32",
        ),
        (
            lambda: scores(loss=lambda w: jnp.ones(2)),
            TypeError,
            r"zo_grasp_scores: the loss must be one number .* got float32\[2\]",
        ),
        (
            lambda: estimators.layerwise_sparsity(PARAMS, 1.5),
            ValueError,
            r"layerwise_sparsity: sparsity must be from 0 to 1, got 1\.5",
        ),
        (
            lambda: estimators.layerwise_sparsity({"w": np.full((2, 2), np.nan)}, 0.5),
            ValueError,
            "layerwise_sparsity: leaf 'w' has scores that are not finite",
        ),
        (
            lambda: estimators.random_masks(KEY, PARAMS, {"a": 0.5, "b": -0.1}),
            ValueError,
            r"random_masks: sparsity of leaf 'b' must be from 0 to 1, got -0\.1",
        ),
        (
            lambda: estimators.layerwise_sparsity(PARAMS, 0.5, mask={"a": True}),
            ValueError,
            r"layerwise_sparsity: mask has one entry .* got .*\{'a': \*\}",
        ),
        (
            lambda: estimators.random_masks(KEY, PARAMS, 0.5),
            ValueError,
            "random_masks: sparsity has one entry for each leaf, in the structure",
        ),
        (
            lambda: estimators.random_masks(1, PARAMS, {"a": 0.5, "b": 0.5}),
            TypeError,
            "random_masks: key must be one typed key",
        ),
    ],
)
def test_bad_input_is_named(call, error, said):
    with pytest.raises(error, match=said):
        call()
