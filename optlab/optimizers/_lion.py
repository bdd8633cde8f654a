"""Lion: the sign of an interpolated momentum."""

from typing import Any

import jax
import optax

from optlab import links


def lion(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.99,
    weight_decay: float | jax.Array = 1e-3,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Moves every entry by the same amount, along the sign of its momentum.

    Rates are about ten times smaller than AdamW's and decay ten times larger.

        u_t = sign(b1 m_{t-1} + (1 - b1) g_t)
        m_t = b2 m_{t-1} + (1 - b2) g_t
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Weight of the momentum in the direction, in [0, 1).
      b2: Decay of the momentum, in [0, 1).
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; the momentum is float32 or wider, updates keep their dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.lion(0.01, weight_decay=0.0)
      >>> g = jnp.array([3.0, -4.0, 0.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)
      >>> print(updates)
      [-0.01  0.01 -0.  ]

    Source:
      Chen et al., 2023, arXiv:2302.06675. The core is Optax's `scale_by_lion`.
      Differs from the authors' code: weight_decay is 1e-3 by default, as in Optax, and
      not 0. Differs from `optax.lion`: float32 momentum for bfloat16 parameters, step
      and rate in the state.
    """
    core = optax.scale_by_lion(b1, b2)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
