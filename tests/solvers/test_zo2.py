"""ZO2 is MeZO one update late, with its layers in the host's memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import schedules, solvers

KEY = jax.random.key(5)
STEPS = 20
LOSS = solvers.StackedLoss(
    embed=lambda outside, batch: batch @ outside["embed"],
    layer=lambda w, h: h + jnp.tanh(h @ w["kernel"]) * w["scale"],
    head_loss=lambda outside, h, batch: jnp.mean((h @ outside["head"] - 1) ** 2),
)


def wave(*shape):
    return jnp.cos(jnp.arange(np.prod(shape), dtype=float)).reshape(shape) / 2


PARAMS = {
    "outside": {"embed": wave(4, 8), "head": wave(8, 2)},
    "layers": {"kernel": wave(5, 8, 8), "scale": wave(5, 8)},
}
SETTINGS = {
    "learning_rate": schedules.linear(0.02, total_steps=STEPS),
    "weight_decay": 0.1,
    "mask": {"outside": False, "layers": {"kernel": True, "scale": False}},
    "distribution": "rademacher",
}
MEZO, ZO2 = solvers.mezo(LOSS, **SETTINGS), solvers.zo2(LOSS, **SETTINGS)
STEP, FLUSH = jax.jit(ZO2.step, donate_argnums=0), jax.jit(ZO2.flush)


def batch(t):
    return jnp.roll(wave(16, 4), t, 0)


@pytest.fixture(scope="module")
def walk():
    """The parameters of plain MeZO after each step, from the first ones on."""
    step, state = jax.jit(MEZO.step), MEZO.init(PARAMS, KEY)
    points, slopes = [state.params], []
    for t in range(STEPS):
        state, found = step(state, batch(t))
        points.append(state.params)
        slopes.append(found.slope)
    return points, slopes


def gap(a, b):
    """Finds the largest difference of entries, on the host."""
    differences = jax.tree.map(
        lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y))), a, b
    )
    return max(jax.tree.leaves(differences))


def kinds(state):
    return {x.sharding.memory_kind for x in jax.tree.leaves(state.params["layers"])}


def test_with_a_flush_it_is_mezo_and_without_one_update_behind(walk):
    points, slopes = walk
    state, found = ZO2.init(PARAMS, KEY), []
    for t in range(STEPS):
        state, both = STEP(state, batch(t))
        found.append(both.slope)
        assert kinds(state) == {"pinned_host"}
        assert gap(state.params, points[t]) <= 1e-6
    np.testing.assert_allclose(found, slopes, rtol=1e-3, atol=1e-3)
    assert gap(state.params, points[-1]) > 1e-5
    flushed = FLUSH(state)
    assert gap(flushed.params, points[-1]) <= 1e-6
    assert kinds(flushed) == {"pinned_host"}
    # What is outside stays on the device.
    (there,) = {
        x.sharding.memory_kind for x in jax.tree.leaves(state.params["outside"])
    }
    assert there == jnp.zeros(()).sharding.memory_kind != "pinned_host"
    again = jax.jit(MEZO.replay)(MEZO.init(PARAMS, KEY), jnp.stack(found))
    assert gap(again.params, flushed.params) <= 1e-6


def test_signs_move_what_does_not_decay_by_as_much_everywhere(walk):
    points, slopes = walk
    for name, start in PARAMS["outside"].items():
        moved = jnp.abs(points[1]["outside"][name] - start)
        np.testing.assert_allclose(moved, 0.02 * abs(slopes[0]), rtol=1e-3)


def test_a_flush_in_the_midst_changes_nothing_but_when(walk):
    points, _ = walk
    state = FLUSH(ZO2.init(PARAMS, KEY))
    assert gap(state.params, PARAMS) == 0
    for t in range(STEPS):
        state, _ = STEP(state, batch(t))
        if t % 7 == 3:
            state = FLUSH(state)
            before = state.params
            state = FLUSH(state)  # a second one finds nothing due
            assert gap(state.params, before) == 0
            assert state.learning_rate == 0
    assert gap(FLUSH(state).params, points[-1]) <= 1e-6


def test_decay_goes_on_where_the_slope_is_zero():
    """The authors' code skips the whole update there."""
    flat = solvers.StackedLoss(LOSS.embed, LOSS.layer, lambda o, h, b: jnp.zeros(()))
    zo2 = solvers.zo2(flat, 0.1, weight_decay=0.5)
    state, found = jax.jit(zo2.step)(zo2.init(PARAMS, KEY), batch(0))
    assert found.slope == 0
    kept = jax.jit(zo2.flush)(state).params["layers"]["kernel"]
    np.testing.assert_allclose(kept, 0.95 * PARAMS["layers"]["kernel"], rtol=1e-6)


def test_a_loss_that_is_not_finite_leaves_no_update_due():
    broken = batch(0).at[0, 0].set(jnp.nan)
    state, found = STEP(ZO2.init(PARAMS, KEY), broken)
    assert jnp.isnan(found.slope) and state.learning_rate == 0
    assert gap(FLUSH(state).params, PARAMS) == 0
