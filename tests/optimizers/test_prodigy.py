"""Prodigy beside test_distance.py: its first step, its safeguard and its slices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import optimizers
from tests.optimizers import bowl, trajectories


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_from_every_other_entry_it_starts_as_well(dtype):
    assert bowl.final_loss(optimizers.prodigy(slice_p=2), dtype, zeros=1) < 1e-2


def test_optax_never_starts_in_bfloat16():
    assert bowl.final_loss(optax.contrib.prodigy(1.0), jnp.bfloat16) == 7.0


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"prodigy: b1 must be at least 0 and below 1, got 1\.0"),
        ({"b3": 1.0}, r"prodigy: b3 must be at least 0 and below 1, got 1\.0"),
        ({"eps": 0.0}, r"prodigy: eps must be above 0, got 0\.0"),
        ({"d_coef": -1.0}, r"prodigy: d_coef must be above 0, got -1\.0"),
        ({"slice_p": 0}, "slice_p must be a whole number of 1 or more, got 0"),
        ({"slice_p": 1.5}, r"slice_p must be .*got 1\.5"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.prodigy(**settings)
