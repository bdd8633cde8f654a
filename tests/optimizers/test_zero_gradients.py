"""Zero gradients, step after step: no matrix optimizer moves or divides by nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers, trees

# The conformance suite asks for the first step of every row; this is the long tail.
pytestmark = pytest.mark.slow

PARAMS = {"up": {"kernel": jnp.ones((4, 6))}}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)
STATS = {"up": trees.LayerStats(*(jnp.zeros(s) for s in (4, 6, (4, 4), (6, 6))))}
LOW = {"rank": 2, "every": 2}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in ("muon", "normuon", "turbo_muon", "scion", "lanton")),
        ("muon_bp", {"every": 2, "blocks": (2, 2)}),
        *(("dion", {"rank": 2}), ("dion2", {})),
        *((name, {"every": 2}) for name in ("soap", "shampoo", "mkor", "kfac")),
        *(("mfac", {"window": 2}), ("adahessian", {}), ("sophia", {"every": 2})),
        *((name, LOW) for name in ("galore", "fira", "apollo", "natural_galore")),
        *(("frugal", {"every": 2}), ("scale", {})),
    ],
    ids=str,
)
def test_three_zero_gradients_leave_everything_finite_and_at_rest(name, settings):
    make = getattr(optimizers, name)
    if name == "scion":
        settings = {"constrained": False}
    if name in ("dion", "dion2", "soap"):
        settings = {**settings, "weight_decay": 0.0}
    tx = make(0.1, **settings)
    given = {"layer_stats": STATS, "hessian_diag": ZERO, "noise_pair": ZERO}
    update = jax.jit(functools.partial(tx.update, **given))
    state = tx.init(PARAMS)
    for _ in range(3):
        updates, state = update(ZERO, state, PARAMS)
        np.testing.assert_array_equal(updates["up"]["kernel"], 0)
    floating = [
        x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert all(np.isfinite(x).all() for x in floating)
