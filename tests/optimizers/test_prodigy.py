"""Prodigy starts in any precision, survives zeros, and equals the authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers, schedules
from tests.conformance import references
from tests.optimizers import bowl, trajectories

TREE = {"a": (4, 6), "b": (5,)}


def tree_gradients(steps):
    pairs = (trajectories.gradients(shape, steps) for shape in TREE.values())
    return [dict(zip(TREE, pair, strict=True)) for pair in zip(*pairs, strict=True)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"bias_correction": True, "growth_rate": 1.1}, {"slice_p": 2}],
    ids=str,
)
def test_it_starts_by_itself_and_d_never_falls(settings, dtype):
    tx = optimizers.prodigy(**settings)
    x, _, d = bowl.descend(tx, dtype, watch=lambda state: state.d)
    assert bowl.loss(x) < 1e-2
    assert d[0] == np.float32(1e-6) and (np.diff(d) >= 0).all() and 0.3 < d[-1] < 4
    if "growth_rate" in settings:
        jump, *later = np.flatnonzero(np.diff(d))
        assert jump < 3 and (d[1:] / d[:-1])[later].max() < 1.1 * (1 + 1e-6)


def test_optax_never_starts_in_bfloat16():
    assert bowl.final_loss(optax.contrib.prodigy(1.0), jnp.bfloat16) == 7.0


def test_a_first_gradient_of_zero_costs_a_step_and_nothing_else():
    start = {name: np.ones(shape, np.float32) for name, shape in TREE.items()}
    zeros = jax.tree.map(np.zeros_like, start)
    grads = [jax.tree.map(np.abs, g) for g in tree_gradients(5)]
    run = functools.partial(trajectories.parameters, params=start, compiled=True)
    settings = {"bias_correction": True, "weight_decay": 0.1, "d0": 0.1}
    later, fresh = run(optimizers.prodigy(**settings), grads=grads)
    for rate in (1.0, lambda count: jnp.where(count == 1, 0.0, 1.0)):
        tx = optimizers.prodigy(rate, **settings)
        # Then a gradient at a rate of zero, or a second one of zero.
        second = grads[0] if callable(rate) else zeros
        points, state = run(tx, grads=[zeros, second, *grads])
        jax.tree.map(np.testing.assert_array_equal, points[2:], later)
        assert (int(state.count), int(state.rate.count)) == (5, 7)
        assert state.d == fresh.d > 0.1
    theirs = optax.contrib.prodigy(1.0)
    updates, _ = theirs.update(zeros, theirs.init(start), start)
    assert np.isnan(updates["a"]).all()


def test_the_first_step_is_d0_times_the_start_of_the_averages():
    g = jnp.array([3.0, -0.5])
    first = {}
    for correct in (False, True):
        tx = optimizers.prodigy(bias_correction=correct)
        first[correct] = tx.update(g, tx.init(g), g)[0]
    # 1e-6 (1 - b1) / sqrt(1 - b2); with the correction, as Optax always has it, 1e-6.
    np.testing.assert_allclose(first[False], [-3.1622777e-6, 3.1622777e-6], rtol=1e-4)
    np.testing.assert_allclose(first[True], [-1e-6, 1e-6], rtol=1e-4)
    theirs = optax.contrib.prodigy(1.0)
    np.testing.assert_allclose(
        first[True], theirs.update(g, theirs.init(g), g)[0], rtol=1e-4
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias_correction": True, "d_coef": 2.0, "weight_decay": 0.1},
        {"growth_rate": 1.3, "b3": 0.9, "d0": 1e-3, "learning_rate": 0.5},
    ],
    ids=str,
)
def test_forty_steps_in_which_d_grows_by_powers_of_ten(settings):
    with jax.enable_x64(True):
        tx = optimizers.prodigy(**settings)
        x, points = jnp.array(bowl.START), []
        state, update = tx.init(x), jax.jit(tx.update)
        for _ in range(40):
            updates, state = update(x, state, x)
            x = x + updates
            points.append(np.asarray(x))
        d = float(state.d)
    grads = [np.array(bowl.START), *points[:-1]]
    known = {"learning_rate": 1.0, "b1": 0.9, "b2": 0.999, "b3": None, "eps": 1e-8}
    known |= {"d0": 1e-6, "d_coef": 1.0, "growth_rate": np.inf, "weight_decay": 0.0}
    known |= {"bias_correction": False, **settings}
    want = references.REFERENCES["prodigy"](known)(grads[0], grads)
    # Theirs subtracts parameters to see how far they have come: 1e-16 in 1e-6.
    np.testing.assert_allclose(points, want, atol=1e-9)
    assert d > 300 * known["d0"]


def test_the_safeguard_takes_the_factor_out_of_the_denominator():
    # At a factor of 1/100 the estimate is made of gradients at full weight.
    estimates = []
    for safe in (False, True):
        tx = optimizers.prodigy(0.01, safeguard_warmup=safe, d0=1e-3, d_coef=1e6)
        estimates.append(bowl.descend(tx, steps=2)[1].d_max)
    np.testing.assert_allclose(estimates[0], 100 * estimates[1], rtol=1e-4)


def test_a_slice_keeps_every_third_entry_and_equals_one_device_on_meshes():
    tx = optimizers.prodigy(slice_p=3, d0=0.1)
    params = {"a": np.ones((8, 16), np.float32), "b": np.ones(7, np.float32)}
    grads = [jax.tree.map(lambda x, t=t: (1 + t) * x, params) for t in range(3)]
    want, state = trajectories.parameters(tx, params, grads, compiled=True)
    assert [s.shape for s in state.s] == [(43,), (3,)] and state.d > 0.1
    assert sum(x.size for x in jax.tree.leaves(state)) < (2 + 2 / 3) * 135 + 10
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
        cuts = {"a": PartitionSpec(None, "devices"), "b": PartitionSpec()}
        place = {name: NamedSharding(mesh, cut) for name, cut in cuts.items()}
        with jax.set_mesh(mesh):
            placed = [jax.device_put(tree, place) for tree in (params, *grads)]
            state, update = tx.init(placed[0]), jax.jit(tx.update)
            x = placed[0]
            for g in placed[1:]:
                updates, state = jax.block_until_ready(update(g, state, x))
                x = optax.apply_updates(x, updates)
            jax.tree.map(
                lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6),
                x,
                want[-1],
            )


def test_a_nan_in_one_leaf_leaves_d_and_the_other_leaf():
    tx = optimizers.prodigy(d0=0.1)
    start = {name: jnp.ones(shape) for name, shape in TREE.items()}
    grads = tree_gradients(3)
    grads[1]["b"] = np.full(5, np.nan, np.float32)
    points, state = trajectories.parameters(tx, start, grads)
    assert state.d == np.float32(0.1) and np.isfinite(points[-1]["a"]).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"prodigy: b1 must be at least 0 and below 1, got 1\.0"),
        ({"b3": 1.0}, r"prodigy: b3 must be at least 0 and below 1, got 1\.0"),
        ({"eps": 0.0}, r"prodigy: eps must be above 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must be 0 or more, got -1\.0"),
        ({"d0": 0.0}, r"prodigy: d0 must be above 0, got 0\.0"),
        ({"growth_rate": 0.9}, r"growth_rate must be 1 or more, got 0\.9"),
        ({"slice_p": 0}, "slice_p must be a whole number of 1 or more, got 0"),
        ({"slice_p": 1.5}, r"slice_p must be .*got 1\.5"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.prodigy(**settings)


def test_missing_parameters_and_rates_by_group_are_named():
    tx = optimizers.prodigy()
    with pytest.raises(ValueError, match=r"needs the parameters: update\(\.\.\., para"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    groups = schedules.per_group({"a": 1.0}, lambda tree: "a")
    with pytest.raises(ValueError, match="prodigy: learning_rate must be one for all"):
        optimizers.prodigy(groups)
