"""The logistic loss in one pass: value and gradient of JAX, and the mean weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import estimators

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(4, 3, 5)), RANDOM.choice([-1.0, 1.0], size=(4, 3))
PARAMS = {"b": np.array(0.3), "w": RANDOM.normal(size=5)}


def margins(params):
    return Y * (X @ params["w"] + params["b"])


def test_value_and_gradient_are_those_of_jax_and_l1_is_that_of_the_logits():
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, PARAMS)

        def loss(logits):
            return jnp.mean(jnp.logaddexp(0, -Y * logits))

        def model(params):
            return X @ params["w"] + params["b"]

        value, grads = jax.value_and_grad(lambda p: loss(model(p)))(params)
        found = estimators.logistic_value_and_grad(margins, params)
        np.testing.assert_allclose(found.value, value, rtol=1e-12)
        for got, want in zip(*map(jax.tree.leaves, (found.grads, grads)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)
        slopes = jax.grad(loss)(model(params))
        np.testing.assert_allclose(found.logit_grad_l1, np.abs(slopes).sum())


@pytest.mark.parametrize("size", [0.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_margins_of_any_size_give_finite_numbers(size, dtype):
    def signed(w):
        return w * jnp.asarray([1.0, -1.0], dtype)

    found = estimators.logistic_value_and_grad(signed, jnp.asarray(size, dtype))
    assert found.grads.dtype == dtype
    assert found.value.dtype == found.logit_grad_l1.dtype == jnp.float32
    # One margin is right and one as wrong.
    np.testing.assert_allclose(found.logit_grad_l1, 0.5)
    np.testing.assert_allclose(found.value, size / 2 if size else np.log(2), rtol=4e-3)
    np.testing.assert_allclose(found.grads.astype(float), 0.5 if size else 0, rtol=1e-6)


def test_no_margins_are_refused():
    with pytest.raises(ValueError, match=r"no margins, their shape is \(0, 3\)"):
        estimators.logistic_value_and_grad(lambda w: jnp.zeros((0, 3)) * w, 1.0)
