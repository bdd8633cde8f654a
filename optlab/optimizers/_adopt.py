"""ADOPT: Adam that divides a gradient by what came before it."""

from typing import Any

import jax
import optax

from optlab import links


def adopt(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.9999,
    eps: float | jax.Array = 1e-6,
    clip: bool = True,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Normalises gradients first and averages them afterwards; any b2 converges.

    In Adam the gradient is in its own divisor, which biases the step. Here v lags by
    one step, and the very first gradient only starts it. Counting from t = 0,

        v_0 = g_0^2,   m_0 = 0,   u_0 = 0
        c_t = g_t / max(sqrt(v_{t-1}), eps)
        c_t = min(max(c_t, -t^(1/4)), t^(1/4))          if clip
        m_t = b1 m_{t-1} + (1 - b1) c_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = m_t
        w_{t+1} = w_t - eta_t (u_t + weight_decay w_t)

    State: 8 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Least root that divides, in units of the gradient.
      clip: Whether normalised gradients are clipped, entry by entry, to a bound that
        grows with the step. Without it an entry whose first gradient was near zero
        steps as far as eps allows.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.
      The first update moves nothing but what decays.

    Raises:
      ValueError: If a decay is outside [0, 1) or eps is negative, or an update comes
        without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.adopt(0.1)
      >>> w = jnp.ones(2)
      >>> state = tx.init(w)
      >>> for g in ([2.0, 2.0], [1.0, 9.0]):  # half of the first, and far more
      ...     updates, state = tx.update(jnp.array(g), state, w)
      >>> [f"{entry:.4f}" for entry in updates]  # 9 / 2 is clipped to 1
      ['-0.0050', '-0.0100']

    Source:
      Taniguchi et al., "ADOPT: modified Adam can converge with any b2 with the optimal
      rate", 2024, arXiv:2411.02853. The core is Optax's `scale_by_adopt`. Differs from
      `optax.contrib.adopt`: decoupled decay, float32 accumulators for bfloat16
      parameters, step and rate in the state. Differs from the latest of the authors'
      code, which has a falling eps for the clipping and starts the mean at c_1.
    """
    links.require_decays("adopt", b1=b1, b2=b2)
    links.require_nonnegative("adopt", eps=eps)
    core = optax.contrib.scale_by_adopt(b1, b2, eps, use_clipping=clip)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
