"""Products with the Hessian against dense ones, and the mean of their draws."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optlab import estimators

MATRIX = jnp.array([[2.0, 1.0], [1.0, 3.0]])


def quadratic(x):
    return 0.5 * x @ MATRIX @ x


def network(params):
    hidden = jnp.tanh(params["in"] @ jnp.arange(3.0))
    return jnp.sum((params["out"] @ hidden) ** 2)


def test_the_product_is_that_of_the_dense_hessian():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(4, 3)), "out": rng.normal(size=(2, 4))}
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        vector = jax.tree.map(jnp.cos, params)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        dense = jax.hessian(lambda x: network(unravel(x)))(flat)
        got = estimators.hessian_vector_product(network, params, vector)
        got, v = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (got, vector))
        np.testing.assert_allclose(got, dense @ v, rtol=1e-12, atol=1e-12)


def test_two_draws_of_signs_have_the_diagonal_as_their_mean():
    """Equal signs give z * Hz = (3, 4), unequal ones (1, 2): mean (2, 3)."""
    seen = {}
    for seed in range(8):
        key = jax.random.key(seed)
        estimate = estimators.hutchinson(quadratic, jnp.ones(2), key)
        seen[tuple(map(float, estimate.hessian_diag))] = estimate
    assert set(seen) == {(3.0, 4.0), (1.0, 2.0)}
    np.testing.assert_array_equal(np.mean([*seen], axis=0), [2, 3])
    estimate = seen[3.0, 4.0]
    assert float(estimate.value) == 3.5
    np.testing.assert_array_equal(estimate.grads, [3, 4])


def test_signs_are_fair_differ_between_leaves_and_keep_dtypes():
    tree = {"a": jnp.zeros(1000), "b": jnp.zeros(1000, jnp.bfloat16), "c": jnp.zeros(0)}
    signs = estimators.rademacher_like(jax.random.key(0), tree)
    assert {k: s.dtype for k, s in signs.items()} == {
        k: x.dtype for k, x in tree.items()
    }
    for name in "ab":
        np.testing.assert_array_equal(jnp.abs(signs[name]), 1)
        # Four standard deviations of the mean of 1000 signs.
        assert abs(float(jnp.mean(signs[name].astype(float)))) < 4 / 1000**0.5
    assert bool(jnp.any(signs["a"] != signs["b"]))


def test_signs_do_not_depend_on_the_placement():
    x, mesh = jnp.zeros((8, 4)), jax.make_mesh((8,), ("x",))
    want = estimators.rademacher_like(jax.random.key(1), x)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("x"))
        placed = jax.device_put(x, place)
        got = jax.jit(estimators.rademacher_like)(jax.random.key(1), placed)
    assert got.sharding.spec == PartitionSpec("x", None)
    np.testing.assert_array_equal(got, want)


def test_all_three_cost_three_gradients():
    weights = jnp.ones((64, 64))

    def loss(w):
        return jnp.sum(jnp.tanh(jnp.tanh(weights @ w) @ w) ** 2)

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    gradient = flops(jax.grad(loss), weights)
    estimate = flops(
        lambda w, key: estimators.hutchinson(loss, w, key), weights, jax.random.key(0)
    )
    assert estimate <= 3.3 * gradient
