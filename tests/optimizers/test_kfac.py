"""K-FAC against dense solves with its Kronecker product, and its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers, trees

A, G = np.array([1.0, -2.0, 0.5]), np.array([0.3, -0.7])
GRADS = {"up": {"kernel": jnp.asarray(np.outer(A, G)), "bias": jnp.asarray(G)}}
METHODS = ("cholesky", "eigh", "newton_schulz")


def one_sample(a, g):
    moments = (jnp.asarray(np.outer(x, x)) for x in (a, g))
    return trees.LayerStats(jnp.asarray(a), jnp.asarray(g), *moments)


def matrix(tree):
    return np.concatenate([tree["up"]["kernel"], tree["up"]["bias"][None]])


def first(tx, grads, stats):
    updates, _ = tx.update(grads, tx.init(grads), layer_stats=stats)
    return updates


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_gives_the_dense_solve_with_split_damping(method):
    damping, a = 0.1, np.append(A, 1.0)  # the bias reads 1
    pi = np.sqrt((a @ a / 4) / (G @ G / 2))
    left = np.outer(a, a) + pi * np.sqrt(damping) * np.eye(4)
    right = np.outer(G, G) + np.sqrt(damping) / pi * np.eye(2)
    dense = np.kron(left, right)
    want = np.linalg.solve(dense, np.outer(a, G).ravel()).reshape(4, 2)
    tx = optimizers.scale_by_kfac(damping=damping, method=method)
    got = first(tx, GRADS, {"up": one_sample(A, G)})
    np.testing.assert_allclose(matrix(got), want, rtol=1e-5, atol=1e-6)


def test_a_large_damping_gives_the_gradient_over_it():
    tx = optimizers.scale_by_kfac(damping=1e8)
    got = first(tx, GRADS, {"up": one_sample(A, G)})
    np.testing.assert_allclose(matrix(got), matrix(GRADS) / 1e8, rtol=1e-3)


def test_the_mean_is_corrected_for_its_start():
    """With moments that do not change every step equals the first."""
    tx = optimizers.scale_by_kfac(damping=0.1, every=1)
    state, stats = tx.init(GRADS), {"up": one_sample(A, G)}
    seen = []
    for _ in range(4):
        updates, state = tx.update(GRADS, state, layer_stats=stats)
        seen.append(matrix(updates))
    np.testing.assert_allclose(seen[3], seen[0], rtol=1e-4)
    raw = np.asarray(state.output_factors[0][0])
    np.testing.assert_allclose(raw, (1 - 0.95**4) * np.outer(G, G), rtol=1e-5)


def test_inverses_are_renewed_each_every_steps_and_moments_in_all():
    tx = optimizers.scale_by_kfac(every=3)
    state, changed = tx.init(GRADS), []
    for step in range(7):
        stats = {"up": one_sample((1 + step) * A, G)}
        before = state
        _, state = tx.update(GRADS, state, layer_stats=stats)
        assert np.any(before.input_factors[0] != state.input_factors[0])
        changed.append(
            bool(np.any(before.input_inverses[0] != state.input_inverses[0]))
        )
    assert changed == [True, False, False, True, False, False, True]


def test_the_inversion_is_in_a_branch_of_the_program():
    tx = optimizers.scale_by_kfac(every=3)
    stats, state = {"up": one_sample(A, G)}, tx.init(GRADS)
    text = jax.jit(tx.update).lower(GRADS, state, layer_stats=stats).as_text()
    assert "stablehlo.case" in text


def test_moments_of_zero_do_not_divide_by_zero():
    tx = optimizers.scale_by_kfac(damping=0.25)
    got = first(tx, GRADS, {"up": one_sample(A, 0 * G)})
    assert np.isfinite(matrix(got)).all()


def test_bad_arguments_and_statistics_are_named():
    with pytest.raises(ValueError, match=r"one of .*'eigh'.*got 'qr'"):
        optimizers.kfac(0.1, method="qr")
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        optimizers.kfac(0.1, every=0)
    tx = optimizers.scale_by_kfac()
    with pytest.raises(TypeError, match=r"scale_by_kfac: .*layer_stats"):
        tx.update(GRADS, tx.init(GRADS))
    means = {"up": (jnp.asarray(A), jnp.asarray(G))}
    with pytest.raises(ValueError, match=r"'up' has input_moment None, wanted \(1, 3"):
        first(tx, GRADS, means)
