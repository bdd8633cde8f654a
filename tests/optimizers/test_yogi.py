"""Yogi: rests without a gradient, survives infinite squares."""

import numpy as np
import optax

from optlab import optimizers
from tests.optimizers import trajectories


def test_rests_where_optax_moves_without_a_gradient():
    zero = [np.zeros(1, np.float32)]
    assert trajectories.last_update(optimizers.scale_by_yogi(), zero) == 0
    assert trajectories.last_update(optax.scale_by_yogi(), zero) > 2e-4


def test_survives_two_infinite_squares():
    huge = [np.full(1, 1e30, np.float32)] * 3 + [np.ones(1, np.float32)]
    assert np.isfinite(trajectories.last_update(optimizers.scale_by_yogi(), huge)).all()
