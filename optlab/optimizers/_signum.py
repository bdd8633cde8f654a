"""Signum: the sign of the mean gradient."""

from typing import Any

import jax
import optax

from optlab import links


def signum(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Moves every entry by the same amount, against the sign of its mean gradient.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = sign(m_t)
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    With b1 = 0 it is signSGD; Lion with b1 = b2 is this. State: 4 bytes a parameter in
    float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; the mean is float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If the decay is outside [0, 1), or an update comes without the
        parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.signum(0.01)
      >>> g = jnp.array([3.0, -4.0, 0.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)
      >>> print(updates)
      [-0.01  0.01 -0.  ]

    Source:
      Bernstein et al., "signSGD: compressed optimisation for non-convex problems",
      2018, arXiv:1802.04434, algorithm 2, on one machine. The links are Optax's `ema`
      and `scale_by_sign`. Differs from `optax.signum`: decoupled decay, a float32 mean
      for bfloat16 parameters, step and rate in the state. UNVERIFIED: the equations are
      from memory of the paper; they are what Optax computes.
    """
    links.require_decays("signum", b1=b1)
    core = optax.chain(optax.ema(b1, debias=False), optax.scale_by_sign())
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
