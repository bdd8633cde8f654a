"""RAdam: when it begins to divide, in float32 too."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories


@pytest.mark.parametrize("b2", [0.99, 0.999, 0.9999])
def test_is_rectified_from_its_sixth_step_in_float32_too(b2):
    tx = optimizers.scale_by_radam(b2=b2)
    g = jnp.full(1, 30.0)
    state, factors = tx.init(g), []
    for _ in range(7):
        updates, state = tx.update(g, state)
        factors.append(np.asarray(updates).item())
    np.testing.assert_allclose(factors[:5], 30, rtol=1e-6)
    t, most = np.arange(6, 8), 2 / (1 - b2) - 1
    r = most - 2 * t * b2**t / (1 - b2**t)
    want = np.sqrt((r - 4) * (r - 2) * most / ((most - 4) * (most - 2) * r))
    np.testing.assert_allclose(factors[5:], want, rtol=3e-4)


def test_optaxs_radam_divides_from_its_second_step_in_float32():
    ours, optaxs = (
        trajectories.last_update(make(b2=0.9999), [np.full(1, 30, np.float32)] * 2)
        for make in (optimizers.scale_by_radam, optax.scale_by_radam)
    )
    assert (ours > 29.9) & (optaxs < 0.1)
