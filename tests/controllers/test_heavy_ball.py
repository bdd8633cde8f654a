"""Rate and momentum from curvature: published numbers, speed, bad numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import controllers, estimators, optimizers, probes

CURVATURES = jnp.array([100.0, 40.0, 7.0, 1.0])


def loss(w):
    return jnp.sum(CURVATURES * w**2) / 2


def test_the_published_numbers():
    found = controllers.heavy_ball(100.0, 1.0)
    np.testing.assert_allclose(found, [0.0330579, 0.6694215], rtol=1e-5)
    careful = controllers.heavy_ball(100.0, 1.0, safety=0.5)
    assert careful == (found.learning_rate / 2, found.momentum)
    assert controllers.heavy_ball(4.0, 4.0) == (0.25, 0.0)


def test_the_error_falls_by_the_root_of_the_momentum():
    w = jnp.ones(4)
    ends = [
        float(
            probes.top_eigenpairs(
                estimators.hessian_product(loss, w), w, jax.random.key(0), which=which
            ).values[0]
        )
        for which in ("largest", "smallest")
    ]
    np.testing.assert_allclose(ends, [100, 1], rtol=1e-4)
    rate, momentum = controllers.heavy_ball(*ends)
    lengths = []
    for b in (momentum, 0.9, 0.0):
        tx, point = optimizers.sgd(rate if b else 0.0198, momentum=b), w
        state = tx.init(point)
        update = jax.jit(lambda w, state, tx=tx: tx.update(jax.grad(loss)(w), state, w))
        for _ in range(40):
            steps, state = update(point, state)
            point = optax.apply_updates(point, steps)
        lengths.append(float(jnp.linalg.norm(point)))
    assert lengths[0] < 40 * 10 * momentum**20  # grows with the number of steps
    assert lengths[0] < 0.1 * min(lengths[1:])


@pytest.mark.parametrize(
    ("numbers", "more", "said"),
    [
        ((1.0, 2.0), {}, r"range above 0, got 2\.0 and 1\.0"),
        ((1.0, 0.0), {}, r"range above 0, got 0\.0 and 1\.0"),
        ((float("nan"), 1.0), {}, r"range above 0, got 1\.0 and nan"),
        ((2.0, 1.0), {"safety": 0.0}, r"safety must be above 0, got 0\.0"),
    ],
)
def test_what_makes_no_sense_is_refused(numbers, more, said):
    with pytest.raises(ValueError, match=said):
        controllers.heavy_ball(*numbers, **more)
