"""LARS: the divisor of the paper."""

import jax.numpy as jnp
import numpy as np
import optax

from optlab import optimizers
from tests.optimizers import trajectories


def test_divides_by_both_lengths_as_in_the_paper():
    # Decay along the gradient: ||g|| + d ||w|| is ||g + d w||; against it, it is not.
    w = {"kernel": jnp.array([[3.0], [4.0]])}
    ours, optaxs = [], []
    for sign in (1.0, -1.0):
        g = {"kernel": sign * w["kernel"]}
        for make, out in ((optimizers.lars, ours), (optax.lars, optaxs)):
            tx = make(1.0, weight_decay=0.5, trust_coefficient=1.0, momentum=0.0)
            out.append(np.linalg.norm(trajectories.first_update(tx, g, w, "kernel")))
    np.testing.assert_allclose(ours, [5, 5 / 3], rtol=1e-6)
    np.testing.assert_allclose(optaxs, [5, 5], rtol=1e-6)
