"""D-Adaptation of Lion beside test_distance.py: its signs, momentum and state."""

import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers
from tests.optimizers import bowl, trajectories


def test_at_a_d_that_is_held_at_one_it_is_lion():
    grads = trajectories.gradients((3, 4), steps=6)
    ours, state = trajectories.parameters(
        optimizers.dadapt_lion(d0=1.0, growth_rate=1.0, weight_decay=0.5),
        jnp.ones((3, 4)),
        grads,
        compiled=True,
    )
    want, _ = trajectories.parameters(
        optimizers.lion(1.0, weight_decay=0.5), jnp.ones((3, 4)), grads, compiled=True
    )
    assert state.d == 1
    np.testing.assert_allclose(ours, want, rtol=1e-6)


def test_at_a_small_d_the_last_gradient_decides():
    # Four of one sign, then a small one of the other: to Lion 0.9 of the mean outweighs
    # 0.1 of it. Here d is in the momentum, and not in the gradient beside it.
    grads = [np.full(1, g, np.float32) for g in (1.0, 1.0, 1.0, 1.0, -0.2)]
    tx = optimizers.dadapt_lion()
    points, state = trajectories.parameters(tx, jnp.zeros(1), grads, compiled=True)
    assert state.d < 1e-5 and points[-1][0] > points[-2][0]


def test_a_constant_factor_does_not_settle():
    # The steps of Lion are of one size: what the guide says about a factor that falls.
    assert 0.1 < bowl.final_loss(optimizers.dadapt_lion()) < 1


def test_eight_bytes_a_parameter():
    got = trajectories.state_bytes(
        optimizers.dadapt_lion(), jnp.ones((8, 8), jnp.bfloat16)
    )
    assert got == 8 * 8**2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"b1": 1.0}, r"dadapt_lion: b1 must be at least 0 and below 1, got 1\.0"),
        ({"b2": -0.1}, r"dadapt_lion: b2 must be at least 0 and below 1, got -0\.1"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        optimizers.dadapt_lion(**settings)
