"""D-Adaptation of Adan beside test_distance.py: its first step, decays and state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers
from tests.optimizers import bowl, trajectories


def test_the_first_step_is_d0_times_the_start_of_the_averages():
    g = jnp.array([3.0, -0.5])
    tx = optimizers.dadapt_adan(weight_decay=0.0)
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g)
    # 1e-6 (1 - b1) / sqrt(1 - b3)
    np.testing.assert_allclose(updates, [-2e-7, 2e-7], rtol=1e-4)


def test_a_constant_gradient_is_adan_without_correction():
    # The difference of gradients is zero; d is held by its limit on growth.
    ones = [np.ones(2, np.float32)] * 5
    tx = optimizers.dadapt_adan(d0=0.1, growth_rate=1.0, weight_decay=0.0)
    points, state = trajectories.parameters(tx, jnp.zeros(2), ones, compiled=True)
    t = np.arange(1, 6)
    want = -np.cumsum(0.1 * (1 - 0.98**t) / np.sqrt(1 - 0.99**t))
    np.testing.assert_allclose(np.array(points)[:, 0], want, rtol=1e-5)
    assert state.d == np.float32(0.1) and not np.any(state.change)


def test_the_two_decays():
    start, zero = {"a": jnp.ones(1), "b": jnp.ones(1)}, np.zeros(1, np.float32)
    ends = {}
    for order in ("proximal", "together"):
        tx = optimizers.dadapt_adan(
            d0=0.5, weight_decay=1.0, decay_order=order, mask={"a": True, "b": False}
        )
        # The gradient of the other leaf sets things in motion.
        gradient = {"a": zero, "b": np.ones(1, np.float32)}
        points, _ = trajectories.parameters(tx, start, [gradient], compiled=True)
        ends[order] = float(points[0]["a"][0])
        np.testing.assert_allclose(points[0]["b"], 1 - 0.5 * 0.02 / 0.1, rtol=1e-5)
    np.testing.assert_allclose(list(ends.values()), [1 / 1.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [({}, 100, 150), ({"growth_rate": 1.02}, 0.5, 1.0)],
    ids=str,
)
def test_a_limit_on_growth_keeps_the_estimate_near_what_it_estimates(
    settings, low, high
):
    # The solution is 3 away. The same comes of the authors' rule in float64.
    _, state, _ = bowl.descend(optimizers.dadapt_adan(**settings))
    assert low < state.d < high


def test_twenty_bytes_a_parameter():
    got = trajectories.state_bytes(
        optimizers.dadapt_adan(), jnp.ones((8, 8), jnp.bfloat16)
    )
    assert got == 20 * 8**2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b3": 1.0}, r"dadapt_adan: b3 must be at least 0 and below 1, got 1\.0"),
        ({"eps": 0.0}, r"dadapt_adan: eps must be above 0, got 0\.0"),
        (
            {"decay_order": "after"},
            "dadapt_adan: decay_order must be one .*got 'after'",
        ),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.dadapt_adan(**settings)
