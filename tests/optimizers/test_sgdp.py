"""SGDP: the authors' numbers, what is kept as the sum, lengths that stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import optimizers
from tests.optimizers import fixture

# Rows are output channels, as in the authors' layout.
CASES = {
    "channels": (
        ([[3.0, 4.0], [1.0, 0.0]], [[[4.0, -3.0], [0.0, 2.0]]]),
        {},
        [[[2.597, 4.296], [0.999, -0.2]], [[1.81103, 4.82304], [0.98901, -0.578]]],
    ),
    "the layer": (
        (np.eye(2), [[[1.0, 0.5], [0.5, -1.0]], [[0.3, -0.2], [1.0, -0.4]]]),
        {},
        [[[0.899, -0.05], [-0.05, 1.099]], [[0.77001, -0.0745], [-0.1945, 1.21801]]],
    ),
    "the layer, nesterov": (
        (np.eye(2), [[[1.0, 0.5], [0.5, -1.0]], [[0.3, -0.2], [1.0, -0.4]]]),
        {"nesterov": True},
        [
            [[0.809, -0.095], [-0.095, 1.189]],
            [[0.66291, -0.09655], [-0.32455, 1.33411]],
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_the_authors_code(case):
    (start, gradients), more, wanted = CASES[case]
    run = functools.partial(
        fixture.run, optimizers.sgdp, steps=2, momentum=0.9, weight_decay=0.01, **more
    )
    got = run(start=start, gradients=gradients, channel_axis=0)
    # Published with few digits, and eps = 1e-8 beside lengths of 1.
    np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-8)
    # The transpose, with its channels last, takes the transposed steps.
    turned = {"start": np.transpose(start), "gradients": np.swapaxes(gradients, 1, 2)}
    also = run(**turned, channel_axis=-1)
    np.testing.assert_allclose(np.swapaxes(also, 1, 2), got, rtol=1e-14)


def test_the_sum_can_be_projected_too():
    w, along, across = (jnp.array([[x]]) for x in ([2.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    sums = []
    for keep in (False, True):
        tx = optimizers.scale_by_sgdp(project_momentum=keep, channel_axis=0)
        state = tx.init(w[0])
        for g in (along, across):
            _, state = tx.update(g[0], state, w[0])
        sums.append(state.momentum)
    np.testing.assert_allclose(sums, [[[0.9, 1.0]], [[0.0, 1.0]]], rtol=1e-6)


def test_the_weights_of_the_paper_s_toy_keep_their_length():
    """f(w) = -cos(w, w*) from (-0.6, 0.8): lengths and ends after 100 steps."""

    def loss(w):
        return 1 - w[0, 0] / jnp.linalg.norm(w)

    def end(tx):
        def body(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.array([[-0.6, 0.8]])
        (w, _), _ = jax.lax.scan(body, (w, tx.init(w)), length=100)
        return jnp.linalg.norm(w), loss(w)

    length, _ = end(optimizers.sgd(0.1, momentum=0.9))
    np.testing.assert_allclose(length, 5.618, rtol=1e-3)
    length, left = end(optimizers.sgdp(0.1, momentum=0.9, channel_axis=0))
    np.testing.assert_allclose(length, 1.282, rtol=1e-3)
    assert left < 1e-6


def test_momenta_out_of_range_are_named():
    with pytest.raises(ValueError, match="momentum must be at least 0"):
        optimizers.sgdp(0.1, momentum=-0.9)
    with pytest.raises(ValueError, match=r"dampening must be 0 to 1, got 2\.0"):
        optimizers.sgdp(0.1, dampening=2.0)
    with pytest.raises(ValueError, match="turn one of them off"):
        optimizers.sgdp(0.1, nesterov=True, project_momentum=True)
