"""Value and gradient of a logistic loss, with the mean weight of its examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class LogisticEstimate(NamedTuple):
    """What one pass of `logistic_value_and_grad` gives.

    Attributes:
      value: The mean loss, shape ().
      grads: Its gradient, shaped like the parameters.
      logit_grad_l1: Mean of sigmoid(-z_i), the size of d loss_i / d z_i, shape ().
    """

    value: jax.Array
    grads: Any
    logit_grad_l1: jax.Array


def logistic_value_and_grad(
    margins: Callable[[Any], jax.Array], params: Any
) -> LogisticEstimate:
    """Differentiates the logistic loss, and says how far the data are from fitted.

        f = mean_i log(1 + exp(-z_i)),   l = mean_i sigmoid(-z_i)

    Args:
      margins: From parameters to z, an array of any shape: label, -1 or 1, times logit.
      params: Tree of arrays.

    Returns:
      Value, gradient, and l, for `optimizers.normalized_logistic`. One forward and one
      backward pass. Margins of any size give finite numbers.

    Raises:
      ValueError: If there are no margins.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> a = jnp.array([[1.0, 0.0], [0.0, -3.0]])
      >>> found = estimators.logistic_value_and_grad(lambda w: a @ w, jnp.zeros(2))
      >>> print(f"{found.value:.4f}", found.grads, found.logit_grad_l1)
      0.6931 [-0.25  0.75] 0.5

    Source:
      Written for this library.
    """
    z, pull_back = jax.vjp(margins, params)
    if not z.size:
        raise ValueError(
            f"logistic_value_and_grad: no margins, their shape is {z.shape}"
        )
    wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    weights = jax.nn.sigmoid(-wide)
    (grads,) = pull_back((-weights / z.size).astype(z.dtype))
    value = jnp.mean(jax.nn.softplus(-wide))
    return LogisticEstimate(value, grads, jnp.mean(weights))
