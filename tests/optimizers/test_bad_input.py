"""Matrix optimizers refuse what makes no sense, by name, when they are built."""

import jax.numpy as jnp
import pytest

from optlab import optimizers, trees

MATRIX = {"up": {"kernel": jnp.ones((4, 6))}}


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (optimizers.mkor, {"every": 2.5}, r"scale_by_mkor: every .* 1, got 2\.5"),
        (optimizers.kfac, {"every": 2.5}, r"scale_by_kfac: every .* 1, got 2\.5"),
        (optimizers.kfac, {"damping": 0.0}, r"scale_by_kfac: damping .* 0, got 0\.0"),
        (optimizers.adahessian, {"every": 1.5}, r"every must be at least 1, got 1\.5"),
        (optimizers.sophia, {"every": 1.5}, r"sophia: every .* 1, got 1\.5"),
        (optimizers.mfac, {"window": 2.5}, r"window must be at least 1, got 2\.5"),
        (optimizers.shampoo, {"root_order": 0}, "root_order must be above 0, got 0"),
        (optimizers.natural_galore, {"damping": 0}, "damping must be above 0, got 0"),
        (optimizers.muon_bp, {"blocks": (2,)}, r"blocks must be .*got \(2,\)"),
        (optimizers.muon, {"min_norm": -1.0}, r"min_norm must be 0 or more, got -1\.0"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_numbers_out_of_range_are_named(make, arguments, said):
    with pytest.raises(ValueError, match=said):
        make(0.1, **arguments)


def test_a_patience_of_nothing_and_a_threshold_of_nothing_are_named():
    with pytest.raises(ValueError, match="patience must be 1 or more, got 0"):
        optimizers.mkor_h(0.1, optimizers.scale_by_mkor(), patience=0)
    with pytest.raises(ValueError, match=r"threshold must be above 0, got 0\.0"):
        optimizers.qk_clip(0.0)


@pytest.mark.parametrize(
    "name",
    [
        *("muon", "normuon", "lanton", "dion", "dion2", "muon_bp", "soap", "shampoo"),
        *("galore", "fira", "apollo", "frugal", "natural_galore", "scale"),
    ],
)
def test_a_leaf_that_is_no_matrix_is_named_by_the_method_it_came_to(name):
    params = {"up": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}
    said = rf"scale_by_{name}: leaf 'up/bias' has shape \(6,\).*rest=optlab.*rules="
    with pytest.raises(ValueError, match=said):
        getattr(optimizers, name)(0.1).init(params)


@pytest.mark.parametrize("make", [optimizers.mkor, optimizers.kfac])
def test_a_layer_without_statistics_is_named_with_the_two_cures(make):
    tx = make(0.1)
    given = {"down": trees.LayerStats(*(jnp.ones(1),) * 4)}
    with pytest.raises(ValueError, match=r"nothing for 'up', but for .*rules="):
        tx.update(MATRIX, tx.init(MATRIX), MATRIX, layer_stats=given)
    with pytest.raises(TypeError, match=r"needs layer_stats.*optlab\.lab\.capture"):
        tx.update(MATRIX, tx.init(MATRIX), MATRIX)


@pytest.mark.parametrize("make", [optimizers.dion2, optimizers.muon_bp])
def test_a_kernel_by_name_is_refused(make):
    with pytest.raises(TypeError, match=r"function of matrices.*got 'jordan'"):
        make(0.1, orthogonalize="jordan")


def test_groups_that_miss_a_leaf_are_named():
    tx = optimizers.lanton(0.1, groups={"down": 1})
    with pytest.raises(ValueError, match="groups has no leaf 'up/kernel'"):
        tx.update(MATRIX, tx.init(MATRIX), MATRIX)
