"""AdaMax: Adam with the largest gradient in place of the mean square."""

from typing import Any

import jax
import optax

from optlab import links


def adamax(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides by a decaying maximum: no update is longer than a few rates.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        x_t = max(b2 x_{t-1}, |g_t| + eps)
        u_t = (m_t / (1 - b1^t)) / x_t
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    State: 8 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule; the paper has
        2e-3.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the maximum, in [0, 1).
      eps: Added to the gradient's size, in its units.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If a decay is outside [0, 1) or eps is negative, or an update comes
        without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.adamax(0.1)
      >>> w, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for g in (4.0, 1.0):  # means 4 and 2.42, and a maximum that stays near 4
      ...     updates, state = tx.update(jnp.array([g]), state, w)
      ...     print(f"{updates[0]:.4f}")
      -0.1000
      -0.0606

    Source:
      D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2014,
      arXiv:1412.6980, algorithm 2, which has no eps. The core is Optax's
      `scale_by_adamax`. Differs from `optax.adamax`: decoupled decay, float32
      accumulators for bfloat16 parameters, step and rate in the state. UNVERIFIED: the
      equations are from memory of the paper; they are what Optax computes.
    """
    links.require_decays("adamax", b1=b1, b2=b2)
    links.require_nonnegative("adamax", eps=eps)
    core = optax.scale_by_adamax(b1, b2, eps)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
