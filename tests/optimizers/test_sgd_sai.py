"""SGD-SaI against the authors' numbers, and leaves on which their ratio explodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers
from tests.optimizers import fixture, trajectories

PUBLISHED = [
    [[0.969298034, -1.938596068], [0.432894102, 2.887192136]],
    [[0.9430434809, -1.879876372], [0.3685294596, 2.773442154]],
    [[0.9176725322, -1.825677246], [0.3170226235, 2.656896298]],
]


def ratio(gradient, **settings):
    """G after one gradient, or after each of a list."""
    gradients = gradient if isinstance(gradient, list) else [gradient]
    tx = optimizers.scale_by_sgd_sai(**settings)
    state = tx.init(gradients[0])
    for g in gradients:
        _, state = tx.update(g, state)
    return float(state.ratio)


def test_equals_the_authors_numbers():
    got = fixture.run(optimizers.sgd_sai, weight_decay=0.1)
    np.testing.assert_allclose(got, PUBLISHED, rtol=fixture.DIGITS)


def test_the_deviation_has_the_sample_s_divisor():
    with jax.enable_x64(True):
        got = ratio(jnp.array(fixture.GRADIENTS[0]))
    np.testing.assert_allclose(got, 2.0701965998, rtol=fixture.DIGITS)
    assert abs(got - 2.3904) > 0.3  # with d in the place of d - 1


@pytest.mark.parametrize("shape", [(2,), (3, 4), (5, 7, 2)])
def test_the_ratio_is_the_root_of_the_size_or_more(shape):
    (g,) = trajectories.gradients(shape, steps=1)
    d = g.size
    least = (d - 1) ** 0.5
    bound = least / np.sqrt(1 - d * np.mean(g) ** 2 / np.sum(g**2))
    for size in (1.0, 1e30):
        np.testing.assert_allclose(ratio(jnp.asarray(size * g)), bound, rtol=1e-4)
    assert bound >= least
    centred = jnp.asarray(g - g.mean())
    np.testing.assert_allclose(ratio(centred), least, rtol=1e-5)


@pytest.mark.parametrize(
    ("gradient", "want"),
    [
        (jnp.array(0.5), 1),
        (jnp.array([0.5]), 1),
        (jnp.full((2, 8), 0.1), 4),
        (jnp.full(9, -1e30), 3),
    ],
    ids=["scalar", "one entry", "equal entries", "huge equal entries"],
)
def test_a_leaf_without_a_deviation_moves_like_others_of_its_size(gradient, want):
    np.testing.assert_allclose(ratio(gradient), want, rtol=1e-6)


def test_the_authors_ratio_throws_one_entry_far_away():
    tx = optimizers.sgd_sai(0.1, weight_decay=0.0, safe=False)
    w, g = jnp.array(1.0), jnp.array(0.5)
    updates, _ = tx.update(g, tx.init(w), w)
    np.testing.assert_allclose(w + updates, -2.5e6, rtol=1e-6)


def test_a_leaf_waits_for_a_gradient_that_says_something():
    zero, bad, g = jnp.zeros(3), jnp.array([1.0, jnp.nan, 2.0]), jnp.array([3.0, -4, 1])
    for nothing in (zero, bad):
        np.testing.assert_allclose(ratio([nothing, g]), 2**0.5, rtol=1e-6)
        np.testing.assert_allclose(ratio([nothing, g, 5 * g + 1]), 2**0.5, rtol=1e-6)
    assert ratio([zero, g], safe=False) == 0
    # Its mean starts with that gradient too, each leaf in its own time.
    tx = optimizers.scale_by_sgd_sai()
    trees = [{"a": g, "b": zero}, {"a": g, "b": 2 * g}]
    state = tx.init(trees[0])
    for tree in trees:
        updates, state = tx.update(tree, state)
    np.testing.assert_allclose(updates["b"], 2 * 2**0.5 * g, rtol=1e-6)
    np.testing.assert_allclose(state.mean["a"], g, rtol=1e-6)


def test_an_empty_tree_and_an_empty_leaf_pass():
    tx = optimizers.scale_by_sgd_sai()
    assert tx.update({}, tx.init({}))[0] == {}
    empty = jnp.ones((0, 4))
    updates, _ = tx.update(empty, tx.init(empty))
    assert updates.shape == (0, 4)


def test_the_state_is_half_of_adamw_s_and_a_number_a_leaf():
    params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
    entries = 65 * 32

    def size(tx):
        return sum(x.nbytes for x in jax.tree.leaves(tx.init(params)))

    ours, adamw = (size(make(0.1)) for make in (optimizers.sgd_sai, optimizers.adamw))
    # Beside the buffers each has a count, and the rate with its own.
    assert (ours, adamw) == (4 * entries + 4 * 2 + 12, 8 * entries + 12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"scale_by_sgd_sai: b1 must be at least 0 and below 1, got 1\.0"),
        ({"eps": -1e-8}, "scale_by_sgd_sai: eps must be 0 or more, got -1e-08"),
        ({"weight_decay": -1.0}, r"sgd_sai: weight_decay must be .*got -1\.0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.sgd_sai(0.1, **settings)


def test_missing_parameters_are_named():
    tx = optimizers.sgd_sai(0.1)
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., para"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
