"""NorMuon: the numbers of its code, even neurons, and the norm that Muon gave."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers, trees
from optlab.trees import MatrixView
from tests.optimizers import trajectories

# A polar factor and what becomes of it at the first step, both (out, in).
POLAR = np.array([[0.8, 0.6], [0.1, 0.2]])
EVEN = np.array([[0.579655, 0.434741], [0.324037, 0.648074]])


def as_given(**changes):
    """The core with the gradient in place of the polar factor."""
    settings = {"b1": 0.0, "nesterov": False, "scale": "none"}
    return optimizers.scale_by_normuon(
        **{**settings, "orthogonalize": lambda x: x, **changes}
    )


def first(tx, gradient):
    return tx.update(gradient, tx.init(gradient))[0]


def test_the_first_step_evens_out_the_neurons_and_keeps_the_norm():
    kernel = {"kernel": jnp.asarray(POLAR.T, jnp.float32)}  # Flax: (in, out)
    got = np.asarray(first(as_given(), kernel)["kernel"]).T
    np.testing.assert_allclose(got, EVEN, atol=2e-6)
    sizes = np.sqrt(np.mean(got**2, axis=1))
    np.testing.assert_allclose(sizes, 0.512348, rtol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(got), 1.024695, rtol=1e-6)


def test_a_transposed_layout_gives_the_transposed_answer():
    view = {"w": MatrixView((1,), (0,))}  # (out, in)
    weight = {"w": jnp.asarray(POLAR, jnp.float32)}
    np.testing.assert_allclose(
        first(as_given(views=view), weight)["w"], EVEN, atol=2e-6
    )


def test_the_second_moment_is_the_mean_square_over_the_fan_in():
    gradient = {"query": {"kernel": jnp.ones((4, 2, 3))}}
    tx = as_given(b2=0.75)
    _, state = tx.update(gradient, tx.init(gradient))
    second = state.second_moment["query"]["kernel"]
    assert second.shape == (1, 2, 3)
    np.testing.assert_allclose(second, 0.25)
    _, state = tx.update(jax.tree.map(lambda g: 2 * g, gradient), state)
    np.testing.assert_allclose(
        state.second_moment["query"]["kernel"], 0.75 * 0.25 + 0.25 * 4
    )


def test_no_bias_correction_is_needed_because_the_norm_is_given_back():
    kernel = {"kernel": jnp.asarray(POLAR.T, jnp.float32)}
    slow, quick = (first(as_given(b2=b2), kernel)["kernel"] for b2 in (0.999, 0.0))
    np.testing.assert_allclose(slow, quick, rtol=1e-6)


@pytest.mark.parametrize("scale", ["jordan", "moonlight", "spectral"])
def test_each_matrix_keeps_the_norm_that_muon_gives_it(scale):
    view = MatrixView((0,), (1,), split=(8, 2, 2))
    params = {
        "qkv": jnp.asarray(trajectories.gradients((4, 12))[0]),
        "stack": jnp.asarray(trajectories.gradients((3, 6, 4))[0]),
    }
    views = {"qkv": view, "stack": MatrixView((1,), (2,))}
    ours = first(optimizers.scale_by_normuon(scale=scale, views=views), params)
    muon = first(optimizers.scale_by_muon(scale=scale, views=views), params)
    for name, view in views.items():
        pairs = (trees.to_matrices(tree[name], view) for tree in (ours, muon))
        for got, want in zip(*pairs, strict=True):
            norms = [np.linalg.norm(x, axis=(-2, -1)) for x in (got, want)]
            np.testing.assert_allclose(*norms, rtol=1e-5)
            np.testing.assert_allclose(
                np.std(np.linalg.norm(got, axis=-2), axis=-1), 0, atol=1e-5
            )


def test_a_dead_neuron_and_a_zero_gradient_stay_at_rest():
    dead = {"kernel": jnp.asarray(POLAR).at[:, 0].set(0.0)}
    got = first(as_given(), dead)["kernel"]
    np.testing.assert_array_equal(got[:, 0], 0)
    assert np.isfinite(got).all()
    zero = jax.tree.map(jnp.zeros_like, dead)
    np.testing.assert_array_equal(first(as_given(), zero)["kernel"], 0)


def test_a_tree_without_matrices_passes_through():
    tx = as_given()
    updates, state = tx.update({}, tx.init({}))
    assert updates == {}
    assert state.second_moment.shape == ()


@pytest.mark.parametrize(
    "make", [optimizers.muon, optimizers.normuon, optimizers.turbo_muon]
)
def test_cautious_decay_leaves_weights_alone_that_want_to_grow(make):
    params = {"kernel": jnp.array([[1.0, 2.0], [-3.0, 4.0]])}
    gradient = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]])}
    got = {}
    for decay in (0.0, 0.5):
        tx = make(0.1, weight_decay=decay, cautious=True)
        got[decay] = tx.update(gradient, tx.init(params), params)[0]["kernel"]
    want = np.where(
        got[0.0] * params["kernel"] <= 0, -0.1 * 0.5 * params["kernel"], 0.0
    )
    assert 0 < np.sum(want != 0) < 4
    np.testing.assert_allclose(got[0.5] - got[0.0], want, atol=1e-6)


def test_decay_is_decoupled_and_leaves_without_a_view_need_a_rest():
    params = {"kernel": jnp.full((2, 2), 2.0)}
    tx = optimizers.normuon(0.5, weight_decay=0.25)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], -0.5 * 0.25 * 2)
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(2,\).*rest="):
        optimizers.normuon(0.5).init({"bias": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"momentum must be one of"):
        optimizers.normuon(0.5, momentum="mean", rest=optax.sgd(0.1))
