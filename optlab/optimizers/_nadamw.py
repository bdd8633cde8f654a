"""NAdamW: AdamW with Nesterov momentum."""

from typing import Any

import jax
import optax

from optlab import links


def nadamw(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 1e-4,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW whose mean looks one step ahead.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        n_t = b1 m_t / (1 - b1^(t+1)) + (1 - b1) g_t / (1 - b1^t)
        u_t = n_t / (sqrt(v_t / (1 - b2^t)) + eps)
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
      >>> tx = optimizers.nadamw(0.1, weight_decay=0.0)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.1474', '0.1474']

    Source:
      Dozat, "Incorporating Nesterov momentum into Adam", 2016, with decoupled decay.
      The core is Optax's `scale_by_adam(nesterov=True)`. Differs from `optax.nadamw`:
      float32 accumulators for bfloat16 parameters, step and rate in the state.
    """
    core = optax.scale_by_adam(b1, b2, eps, nesterov=True)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
