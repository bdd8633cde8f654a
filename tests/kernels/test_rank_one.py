"""Rank-one updates of an inverse against the inverse, in three published forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import kernels

RULES = kernels.RANK_ONE_RULES


@pytest.mark.parametrize(
    ("rule", "diagonal"),
    [("code", (0.5, 1.0)), ("exact", (1.0, 1.0526316)), ("paper", (1.0028915, 0.95))],
)
def test_the_identity_and_an_axis_give_the_known_numbers(rule, diagonal):
    got = kernels.rank_one_inverse(jnp.eye(2), jnp.array([1.0, 0.0]), 0.95, rule)
    np.testing.assert_allclose(got, np.diag(diagonal), rtol=1e-5)


def spd(size, seed):
    x = np.random.default_rng(seed).normal(size=(size, size))
    return x @ x.T / size + np.eye(size)


def test_exact_and_code_are_inverses_of_what_they_say():
    matrix, v = spd(5, 0), np.random.default_rng(1).normal(size=5)
    inverse = np.linalg.inv(matrix)
    shrunk = 0.9 * inverse + 0.1 * np.eye(5)
    want = {
        "exact": np.linalg.inv(0.9 * matrix + 0.1 * np.outer(v, v)),
        "code": np.linalg.inv(np.linalg.inv(shrunk) + np.outer(v, v)),
    }
    with jax.enable_x64(True):
        for rule, expected in want.items():
            got = kernels.rank_one_inverse(
                jnp.asarray(inverse), jnp.asarray(v), 0.9, rule
            )
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_stacks_are_their_matrices_and_stay_symmetric_and_positive(rule):
    inverses = jnp.asarray([spd(4, seed) for seed in range(3)], jnp.float32)
    inverses = (inverses + inverses.mT) / 2
    vectors = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)), jnp.float32)
    got = kernels.rank_one_inverse(inverses, vectors, 0.95, rule)
    for index in range(3):
        alone = kernels.rank_one_inverse(inverses[index], vectors[index], 0.95, rule)
        np.testing.assert_allclose(got[index], alone, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(got, got.mT)
    assert np.linalg.eigvalsh(got).min() > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_extreme_vectors_have_their_limits(rule, size):
    v = size * jnp.array([1.0, 0.0])
    got = kernels.rank_one_inverse(jnp.eye(2), v, 0.5, rule)
    along = {"code": 0.0, "exact": 0.0, "paper": 0.5 + 0.5 / 0.25 / 0.25}
    still = {"code": 1.0, "exact": 2.0, "paper": 0.5}[rule]
    want = along[rule] if size == 1e30 else still
    np.testing.assert_allclose(got, np.diag([want, still]), atol=1e-6)


def test_dtypes_are_kept_and_an_unknown_rule_is_refused():
    eye, v = jnp.eye(2, dtype=jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
    assert kernels.rank_one_inverse(eye, v, 0.95).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"one of .*'exact'.*got 'woodbury'"):
        kernels.rank_one_inverse(eye, v, 0.95, "woodbury")
