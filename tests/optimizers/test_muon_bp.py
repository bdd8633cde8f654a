"""MuonBP: blocks in between, whole matrices in their turn, Muon where they agree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optlab import kernels, optimizers
from tests.optimizers import trajectories

# Slope of Newton-Schulz at zero, 485, times a few float32 roundings.
ROUNDING = 485 * 2e-7
GRADIENT = {"kernel": jnp.asarray(trajectories.gradients((2, 4, 6))[0])}


def updates_of(tx, steps=4):
    state, seen = tx.init(GRADIENT), []
    for k in range(steps):
        gradient = jax.tree.map(lambda g, k=k: g * (1 + k), GRADIENT)
        updates, state = tx.update(gradient, state)
        seen.append(np.asarray(updates["kernel"]))
    return seen


@pytest.mark.parametrize(
    "settings",
    [{"every": 1, "blocks": (2, 3)}, {"every": 3, "blocks": (1, 1)}],
    ids=["period one", "one block"],
)
def test_with_one_block_or_period_one_it_is_muon(settings):
    form = {"momentum": "sum", "nesterov": False, "scale": "moonlight"}
    got = updates_of(optimizers.scale_by_muon_bp(**settings))
    want = updates_of(optimizers.scale_by_muon(**form))
    np.testing.assert_allclose(got, want, atol=ROUNDING)


def test_blocks_are_orthogonalised_apart_with_their_own_scale_and_rate():
    tx = optimizers.scale_by_muon_bp(every=2, blocks=(2, 3), block_rate=0.5)
    full, blockwise = updates_of(tx, steps=2)
    x = GRADIENT["kernel"]
    whole = 0.2 * np.sqrt(6) * kernels.newton_schulz(x)
    np.testing.assert_allclose(full, whole, atol=ROUNDING)
    for i in (0, 2):
        for j in (0, 2, 4):
            block = kernels.newton_schulz(x[:, i : i + 2, j : j + 2])
            np.testing.assert_allclose(
                blockwise[:, i : i + 2, j : j + 2],
                0.5 * 0.2 * np.sqrt(2) * block,
                atol=ROUNDING,
            )


def test_full_steps_come_first_and_then_in_their_turn():
    tx = optimizers.scale_by_muon_bp(every=3, blocks=(1, 2), block_rate=0.0)
    moved = [bool(np.any(update)) for update in updates_of(tx, steps=7)]
    assert moved == [True, False, False, True, False, False, True]


def test_an_axis_that_blocks_do_not_divide_is_cut_as_far_as_it_can_be():
    shapes = []

    def kernel(x):
        shapes.append(x.shape)
        return x

    tx = optimizers.scale_by_muon_bp(every=2, blocks=(3, 4), orthogonalize=kernel)
    updates_of(tx, steps=1)
    # 3 does not divide 4 rows; 4 and 6 columns have a divisor of 2 in common.
    assert set(shapes) == {(2, 4, 6), (2, 1, 2, 4, 3)}


def test_a_block_step_does_not_pay_for_whole_matrices():
    tx = optimizers.scale_by_muon_bp(every=2, blocks=(1, 2))
    text = jax.jit(tx.update).lower(GRADIENT, tx.init(GRADIENT)).as_text()
    assert "stablehlo.case" in text or "stablehlo.if" in text
    # Products of both kinds are inside the branches, none beside them.
    outside = text.split("stablehlo.case")[0]
    assert "dot_general" in text and "dot_general" not in outside


def test_where_blocks_are_shards_block_steps_send_nothing():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec(None, "x"))
    gradient = {"kernel": jax.device_put(jnp.ones((8, 32)), place)}
    tx = optimizers.scale_by_muon_bp(every=2, blocks=(1, 8))
    with jax.set_mesh(mesh):
        compiled = jax.jit(tx.update).lower(gradient, tx.init(gradient)).compile()
    text = compiled.as_text()
    between, full = re.search(r"branch_computations=\{%(\S+), %(\S+)\}", text).groups()
    sends = {
        name: "all-" in text.split(f"\n%{name} ")[1].split("\n}")[0]
        for name in (between, full)
    }
    assert sends == {between: False, full: True}


def test_what_makes_no_sense_is_refused():
    for settings in ({"every": 0}, {"every": 2.5}, {"blocks": (0, 2)}):
        name = next(iter(settings))
        with pytest.raises(ValueError, match=rf"{name} must be 1 or more, got"):
            optimizers.muon_bp(0.1, rest=optax.sgd(0.1), **settings)
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(2,\).*rest="):
        optimizers.muon_bp(0.1).init({"bias": jnp.ones(2)})
