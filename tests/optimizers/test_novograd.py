"""NovoGrad: sizes of gradients cancel, and decay goes through the momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import optimizers
from tests.optimizers import trajectories

W = {"kernel": jnp.array([[[3.0], [4.0]], [[30.0], [40.0]]])}


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_first_step_of_each_layer_has_the_length_of_the_rate(size):
    grads = jax.tree.map(lambda w: size * w, W)
    tx = optimizers.novograd(0.1, eps=0.0)
    got = trajectories.first_update(tx, grads, W, "kernel")
    np.testing.assert_allclose(np.linalg.norm(got, axis=(1, 2)), 0.1, rtol=1e-5)


def test_decay_goes_on_through_the_momentum():
    zero = {"kernel": jnp.zeros((2, 1))}
    ones = {"kernel": jnp.ones((2, 1))}
    tx = optimizers.novograd(0.1, b1=0.5, weight_decay=1.0)
    points, _ = trajectories.parameters(tx, ones, [zero] * 2)
    # m is 1 and then 0.5 + 0.9.
    for point, want in zip(points, (0.9, 0.9 - 0.14), strict=True):
        np.testing.assert_allclose(point["kernel"], want, rtol=1e-6)


def test_four_bytes_a_layer():
    shapes = {"kernel": jax.ShapeDtypeStruct((5, 8, 4), jnp.bfloat16)}
    state = jax.eval_shape(optimizers.scale_by_novograd().init, shapes)
    (length,) = state.length
    assert (length.shape, length.dtype) == ((5, 1, 1), jnp.float32)
