"""D-Adaptation of Adam beside test_distance.py: its first step, decay and state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import bowl, trajectories


def test_the_first_step_is_d0_times_the_start_of_the_averages():
    g, first = jnp.array([3.0, -0.5]), {}
    for correct in (False, True):
        tx = optimizers.dadapt_adam(bias_correction=correct)
        first[correct] = tx.update(g, tx.init(g), g)[0]
    # 1e-6 (1 - b1) / sqrt(1 - b2); with the correction, as Optax always has it, 1e-6.
    np.testing.assert_allclose(first[False], [-3.1622777e-6, 3.1622777e-6], rtol=1e-4)
    theirs = optax.contrib.dadapt_adamw(1.0)
    want = theirs.update(g, theirs.init(g), g)[0]
    np.testing.assert_allclose(first[True], want, rtol=1e-4)


def test_at_a_d_that_stays_it_is_adam_with_that_rate():
    # Gradients of alternating sign show no progress: d stays at d0.
    grads = [g * (-1) ** t for t, g in enumerate([np.ones(3, np.float32)] * 6)]
    ours, state = trajectories.parameters(
        optimizers.dadapt_adam(d0=0.01, bias_correction=True), jnp.ones(3), grads
    )
    assert state.d == np.float32(0.01)
    # The correction is that of the step at which a gradient comes: 1 - b1^t of then.
    m = v = 0.0
    x = 1.0
    for t, g in enumerate(np.ravel([g[0] for g in grads]), start=1):
        a = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        m, v = 0.9 * m + 0.1 * a * g, 0.999 * v + 0.001 * g * g
        x -= m / np.sqrt(v)
    np.testing.assert_allclose(ours[-1], x, rtol=1e-5)


def test_decay_is_of_the_weight_or_in_the_gradient_and_the_mask_holds():
    start, mask = {"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": True, "b": False}
    grads = [jax.tree.map(np.ones_like, start)]
    for decoupled, moved, square in ((True, 0.1 * 0.5, 1.0), (False, 0.0, 1.5**2)):
        ends = []
        for decay in (0.0, 0.5):
            tx = optimizers.dadapt_adam(
                d0=0.1, weight_decay=decay, decoupled=decoupled, mask=mask
            )
            points, state = trajectories.parameters(tx, start, grads, compiled=True)
            ends.append(points[0])
        np.testing.assert_allclose(ends[0]["a"] - ends[1]["a"], moved, atol=1e-6)
        np.testing.assert_array_equal(ends[0]["b"], ends[1]["b"])
        np.testing.assert_allclose(state.nu["a"], 0.001 * square, rtol=1e-4)
        np.testing.assert_allclose(state.nu["b"], 0.001, rtol=1e-4)


def test_twelve_bytes_a_parameter_and_three_numbers():
    tx, params = optimizers.dadapt_adam(), jnp.ones((8, 8), jnp.bfloat16)
    got = trajectories.state_bytes(tx, params)
    assert got == 12 * 8**2
    state = jax.eval_shape(tx.init, params)
    assert state.d.dtype == state.numerator.dtype == jnp.float32


def test_optax_takes_the_same_steps_where_it_corrects():
    ours, theirs = (
        bowl.descend(tx, steps=30)[0]
        for tx in (
            optimizers.dadapt_adam(bias_correction=True),
            optax.contrib.dadapt_adamw(1.0),
        )
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"dadapt_adam: b1 must be at least 0 and below 1, got 1\.0"),
        ({"b2": -0.1}, r"dadapt_adam: b2 must be at least 0 and below 1, got -0\.1"),
        ({"eps": 0.0}, r"dadapt_adam: eps must be above 0, got 0\.0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.dadapt_adam(**settings)
