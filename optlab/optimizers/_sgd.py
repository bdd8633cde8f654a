"""Stochastic gradient descent with momentum."""

import jax
import optax

from optlab import links


def sgd(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Steps against the gradient, or against a decaying sum of gradients.

        m_t = momentum m_{t-1} + g_t
        w_t = w_{t-1} - eta_t m_t                    (g_t + momentum m_t if nesterov)

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      momentum: Decay of the sum, in [0, 1); None keeps no sum at all.
      nesterov: Whether the gradient is mixed in once more, as above.

    Returns:
      A transformation; the sum is float32 or wider, updates keep their dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.sgd(0.5, momentum=0.5)
      >>> g, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for _ in range(3):
      ...     updates, state = tx.update(g, state)
      >>> print(updates)
      [-0.875]

    Source:
      Polyak, 1964; Sutskever et al., 2013. The core is Optax's `trace`. Differs from
      `optax.sgd`: float32 momentum for bfloat16 parameters, step and rate in the
      state.
    """
    rate = links.scale_by_learning_rate(learning_rate)
    if momentum is None:
        return rate
    return links.in_float32(optax.chain(optax.trace(momentum, nesterov), rate))
