"""AdamW: Adam with decoupled weight decay."""

from typing import Any

import jax
import optax

from optlab import links


def adamw(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 1e-4,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW: each entry moves by its mean gradient over its root mean square.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.adamw(0.1, weight_decay=0.0)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.1000', '0.1000']

    Source:
      Loshchilov and Hutter, 2019, arXiv:1711.05101. The core is Optax's
      `scale_by_adam`. Differs from `optax.adamw`: the second moment is float32 for
      bfloat16 parameters, and the state shows step and rate.
    """
    core = optax.scale_by_adam(b1, b2, eps)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
