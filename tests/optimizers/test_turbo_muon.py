"""Turbo-Muon: the published row scaling, and four steps where Muon takes five."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import kernels, optimizers
from tests.optimizers import trajectories

# A step that does nothing: what is left is the row scaling.
scaled_rows = functools.partial(
    kernels.newton_schulz, coefficients=[(1.0, 0.0, 0.0)], prescale="aol"
)


def first(tx, gradient):
    return tx.update(gradient, tx.init(gradient), gradient)[0]


def test_the_row_scaling_is_the_published_one():
    np.testing.assert_allclose(
        scaled_rows(jnp.diag(jnp.array([3.0, 4.0]))), np.eye(2), atol=1e-6
    )
    got = scaled_rows(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_allclose(got, [[0.25, 0.5], [0.5, 2 / 3]], rtol=1e-6)
    values = np.linalg.svd(got, compute_uv=False)
    np.testing.assert_allclose(values, [1, 1 / 12], rtol=1e-5)


@pytest.mark.parametrize("kind", ["random", "rank one", "ones"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_no_singular_value_is_above_one_after_the_scaling(kind, shape):
    x = trajectories.gradients(shape)[0]
    x = {"random": x, "rank one": np.outer(x[:, 0], x[0]), "ones": np.ones(shape)}[kind]
    got = scaled_rows(jnp.asarray(x, jnp.float32))
    # Sums of 9 products, each rounded.
    assert np.linalg.norm(got, 2) <= 1 + 9 * 2.0**-23


def test_four_steps_end_nearer_to_one_than_muon_s_five():
    gradient = jnp.asarray(trajectories.gradients((32, 48))[0])
    worst = {}
    for make in (optimizers.muon, optimizers.turbo_muon):
        update = first(make(1.0, nesterov=False, scale="none"), {"kernel": gradient})
        values = np.linalg.svd(update["kernel"], compute_uv=False)
        worst[make.__name__] = np.abs(values - 1).max()
    assert worst["turbo_muon"] < 0.1 < worst["muon"]


def test_the_size_of_a_row_does_not_matter_but_for_muon_it_does():
    gradient = trajectories.gradients((4, 6))[0]
    grown = np.array([[1.0], [2.0**10], [1.0], [2.0**-10]], np.float32) * gradient
    for make, even in ((optimizers.turbo_muon, True), (optimizers.muon, False)):
        one, other = (
            first(make(1.0), {"kernel": jnp.asarray(g)})["kernel"]
            for g in (gradient, grown)
        )
        rows = [np.linalg.norm(x[1]) / np.linalg.norm(x[3]) for x in (one, other)]
        assert (rows[1] < 3 * rows[0]) == even


def test_vmap_equals_the_loop():
    gradients = jnp.stack(
        [jnp.asarray(trajectories.gradients((4, 6), seed=s)[0]) for s in range(2)]
    )
    step = functools.partial(first, optimizers.turbo_muon(1.0))
    got = jax.vmap(step)({"kernel": gradients})["kernel"]
    want = jnp.stack([step({"kernel": g})["kernel"] for g in gradients])
    # At s = 1 the first step is 4.6 - 9.7 + 5.7 = 0.63: it loses a factor of 32.
    np.testing.assert_allclose(got, want, atol=32 * 2.0**-23)


def test_it_is_muon_with_another_kernel():
    kernel = functools.partial(
        kernels.newton_schulz, coefficients="turbo", prescale="aol"
    )
    settings = {"weight_decay": 0.25, "b1": 0.5, "scale": "moonlight"}
    points = [
        trajectories.parameters(tx, jnp.ones((4, 6)), trajectories.gradients((4, 6)))[0]
        for tx in (
            optimizers.turbo_muon(0.1, **settings),
            optimizers.muon(0.1, orthogonalize=kernel, **settings),
        )
    ]
    np.testing.assert_array_equal(*points)


def test_leaves_without_a_view_need_a_rest():
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(2,\).*rest="):
        optimizers.turbo_muon(0.5).init({"bias": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"scale must be a function or one of"):
        optimizers.turbo_muon(0.5, scale="rms", rest=optax.sgd(0.1))
