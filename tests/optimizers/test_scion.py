"""Scion: the far ends of its balls, and weights that stay inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels, optimizers
from tests.optimizers import trajectories

GRADIENT = trajectories.gradients((4, 6))[0]


def exact(x):
    u, _, v = jnp.linalg.svd(x, full_matrices=False)
    return u @ v


def end(name, x, **settings):
    """The far end of the ball of a norm, opposite to a gradient, by the core."""
    tx = optimizers.scale_by_scion(
        norms=lambda tree: jax.tree.map(lambda _: name, tree), **settings
    )
    gradient = {"kernel": jnp.asarray(x)}
    return np.asarray(tx.update(gradient, tx.init(gradient))[0]["kernel"])


# The norm of a matrix (fan-in m, fan-out n) whose ball is meant, and its dual.
BALLS = {
    "spectral": lambda x: np.linalg.norm(x, 2) * np.sqrt(x.shape[0] / x.shape[1]),
    "sign": lambda x: np.abs(x).max() * x.shape[0],
    "row": lambda x: np.linalg.norm(x, axis=0).max() * np.sqrt(x.shape[0]),
    "rms": lambda x: np.sqrt(np.mean(x**2, axis=-1)).max(),
}
DUALS = {
    "spectral": lambda g: np.linalg.norm(g, "nuc") * np.sqrt(6 / 4),
    "sign": lambda g: np.abs(g).sum() / 4,
    "row": lambda g: np.linalg.norm(g, axis=0).sum() / 2,
    "rms": lambda g: np.linalg.norm(g, axis=-1).sum() * np.sqrt(6),
}


@pytest.mark.parametrize("name", BALLS)
def test_the_end_is_on_the_ball_and_no_point_of_it_is_farther_down(name):
    got = end(name, GRADIENT, orthogonalize=exact, radius={name: 3.0})
    np.testing.assert_allclose(BALLS[name](got), 3.0, rtol=1e-5)
    np.testing.assert_allclose(
        np.sum(got * GRADIENT), 3.0 * DUALS[name](GRADIENT), rtol=1e-5
    )


@pytest.mark.parametrize("name", BALLS)
def test_the_size_of_the_gradient_does_not_matter_and_zero_stays_zero(name):
    want = end(name, GRADIENT)
    for factor in (2.0**90, 2.0**-90):
        np.testing.assert_allclose(end(name, factor * GRADIENT), want, rtol=1e-6)
    np.testing.assert_array_equal(end(name, 0 * GRADIENT), 0)


def test_each_leaf_has_the_norm_of_its_role():
    params = {
        "embed": {"embedding": jnp.ones((9, 4))},
        "layers": {"up": {"kernel": jnp.ones((2, 4, 6)), "bias": jnp.ones((2, 6))}},
        "lm_head": {"kernel": jnp.ones((4, 9)), "bias": jnp.ones(9)},
        "temperature": jnp.ones(()),
    }
    assert optimizers.scion_norms(params) == {
        "embed": {"embedding": "rms"},
        "layers": {"up": {"kernel": "spectral", "bias": "rms"}},
        "lm_head": {"kernel": "sign", "bias": "rms"},
        "temperature": "rms",
    }
    updates, _ = optimizers.scale_by_scion().update(
        params, optimizers.scale_by_scion().init(params)
    )
    # 4 rows of ones: the only singular value is that of the polar factor.
    one = kernels.newton_schulz(jnp.ones((4, 6)))[0, 0] * np.sqrt(6 / 4)
    np.testing.assert_allclose(updates["layers"]["up"]["kernel"], one, rtol=1e-5)
    np.testing.assert_allclose(updates["lm_head"]["kernel"], 1 / 4)
    for leaf in (updates["embed"]["embedding"], updates["temperature"]):
        np.testing.assert_allclose(leaf, 1)


def test_a_convolution_is_one_matrix_of_its_filters():
    filters = trajectories.gradients((3, 3, 4, 8))[0]
    got = end("spectral", filters, orthogonalize=exact).reshape(36, 8)
    values = np.linalg.svd(got, compute_uv=False)
    np.testing.assert_allclose(values, np.sqrt(8 / 36), rtol=1e-5)


def test_constrained_weights_stay_in_the_ball_and_free_ones_leave_it():
    grads = [{"bias": g} for g in trajectories.gradients((6,), steps=1) * 30]
    start = {"bias": jnp.zeros(6)}
    sizes = []
    for constrained in (True, False):
        tx = optimizers.scion(0.25, constrained=constrained, radius={"rms": 2.0})
        points, _ = trajectories.parameters(tx, start, grads)
        sizes.append(float(np.sqrt(np.mean(points[-1]["bias"] ** 2))))
    np.testing.assert_allclose(sizes, [2 * (1 - 0.75**30), 30 * 0.25 * 2], rtol=1e-5)


def test_the_momentum_is_the_authors_average():
    tx = optimizers.scale_by_scion(b1=0.75)
    gradient = {"bias": jnp.array([4.0])}
    _, state = tx.update(gradient, tx.init(gradient))
    _, state = tx.update(gradient, state)
    np.testing.assert_allclose(state.momentum["bias"], 4 * (1 - 0.75**2))


def test_unknown_norms_and_axes_that_do_not_fit_are_named():
    bias = {"up": {"bias": jnp.ones(3)}}
    for name in ("sign", "nuclear"):
        tx = optimizers.scion(0.1, norms={"up": {"bias": name}})
        with pytest.raises(
            ValueError, match=rf"leaf 'up/bias' of shape \(3,\) has the norm '{name}'"
        ):
            tx.init(bias)
    with pytest.raises(ValueError, match=r"radius has \['spectrum'\]; norms are"):
        optimizers.scion(0.1, radius={"spectrum": 2.0})
