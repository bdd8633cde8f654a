"""SGD with momentum against its equations in float64 and against Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import trajectories

FORMS = [
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 0.7},
    {"momentum": 0.7, "nesterov": True},
]


def transcription(w, grads, eta, momentum, nesterov=False):
    """Sutskever et al., the sum with weight 1 on gradients, one leaf in float64."""
    m, points = 0.0, []
    for g in grads:
        m = (momentum or 0.0) * m + g
        w = w - eta * (g + momentum * m if nesterov else m)
        points.append(w)
    return points


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_its_equations_and_optax(form):
    grads = trajectories.gradients((2, 3), steps=6, dtype=np.float64)
    with jax.enable_x64(True):
        got, _ = trajectories.parameters(
            optimizers.sgd(0.1, **form), jnp.ones((2, 3)), grads
        )
    np.testing.assert_allclose(got, transcription(1.0, grads, 0.1, **form), rtol=1e-14)
    short = [g.astype(np.float32) for g in grads]
    got, _ = trajectories.parameters(
        optimizers.sgd(0.1, **form), jnp.ones((2, 3)), short
    )
    want, _ = trajectories.parameters(optax.sgd(0.1, **form), jnp.ones((2, 3)), short)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_without_momentum_nothing_is_accumulated():
    state = optimizers.sgd(0.1).init(jnp.ones((100,)))
    assert {x.shape for x in jax.tree.leaves(state)} == {()}


def test_in_bfloat16_a_long_sum_keeps_its_digits():
    gradient = jnp.ones(2, jnp.bfloat16)
    tx = optimizers.sgd(1e-3, momentum=0.999)
    _, state = trajectories.parameters(tx, gradient, [gradient] * 5)
    trace = optax.tree.get(state, "trace")
    assert trace.dtype == jnp.float32
    np.testing.assert_allclose(trace, (1 - 0.999**5) / 0.001, rtol=1e-5)
