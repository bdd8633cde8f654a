"""Bytes of state for each parameter of a square matrix in float32, as published."""

import functools

import jax
import jax.numpy as jnp
import pytest

from optlab import optimizers
from tests.optimizers import trajectories

N = 64
PARAMS = {"up": {"kernel": jax.ShapeDtypeStruct((N, N), jnp.float32)}}
LOW = functools.partial(functools.partial, rank=8)


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (optimizers.muon, 4),
        (optimizers.turbo_muon, 4),
        (optimizers.muon_bp, 4),
        (optimizers.dion2, 4),
        (optimizers.scion, 4),
        (optimizers.normuon, 4 + 4 / N),
        (LOW(optimizers.dion), 4 * (1 + 8 / N)),
        (optimizers.lanton, 8),
        (functools.partial(optimizers.lanton, second_gradient="pair"), 4),
        (functools.partial(optimizers.mkor, momentum=None), 8),
        (functools.partial(optimizers.kfac, momentum=None), 16),
        (functools.partial(optimizers.mfac, window=5), 4 * 5 + 4 * 5**2 / N**2),
        (optimizers.shampoo, 24),
        (functools.partial(optimizers.shampoo, graft="sgd"), 20),
        (optimizers.soap, 24),
        (functools.partial(optimizers.soap, max_size=N - 1), 8),
        (optimizers.adahessian, 8),
        (optimizers.sophia, 8),
        # A basis and two moments of 8 directions each.
        (LOW(optimizers.galore), 4 * 3 * 8 / N),
        (LOW(optimizers.fira), 4 * 3 * 8 / N),
        # The projection is drawn anew and not kept.
        (LOW(optimizers.apollo), 4 * 2 * 8 / N),
        (LOW(optimizers.natural_galore), 4 * (2 * 8 / N + 22 * 8**2 / N**2)),
        (functools.partial(optimizers.frugal, density=0.25), 2),
        (optimizers.scale, 0),
    ],
)
def test_the_state_has_the_published_bytes_a_parameter(make, want):
    got = trajectories.state_bytes(make(0.1), PARAMS) / N**2
    # Beside it a few numbers a matrix: norms, flags, indices.
    assert want <= got <= want + 80 / N**2
