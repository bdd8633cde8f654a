"""AMSGrad: Adam whose divisor never falls."""

from typing import Any

import jax
import optax

from optlab import links


def amsgrad(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    bias_correction: bool = True,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides by the largest mean square so far: effective rates cannot rise.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        x_t = max(x_{t-1}, v_t / (1 - b2^t))
        u_t = (m_t / (1 - b1^t)) / (sqrt(x_t) + eps)
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Corrected, v_1 is all of g_1^2: one large first gradient is never forgotten. State:
    12 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      bias_correction: Whether the averages are corrected as above; False is the paper,
        whose first step is (1 - b1) / sqrt(1 - b2) rates long, 3.2 by default.
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
      >>> for bias_correction in (True, False):
      ...     tx = optimizers.amsgrad(0.1, bias_correction=bias_correction)
      ...     g = jnp.array([3.0, -4.0])
      ...     updates, _ = tx.update(g, tx.init(g), g)
      ...     print([f"{entry:.4f}" for entry in updates])
      ['-0.1000', '0.1000']
      ['-0.3162', '0.3162']

    Source:
      S. Reddi, S. Kale, S. Kumar, "On the convergence of Adam and beyond", 2018,
      arXiv:1904.09237, algorithm 2. The core is Optax's `scale_by_amsgrad`. Differs
      from PyTorch, which corrects the largest v in place of taking the largest
      corrected one. Differs from `optax.amsgrad`: decoupled decay, float32 accumulators
      for bfloat16 parameters, step and rate in the state. UNVERIFIED: the equations are
      from memory of the paper; they are what Optax computes.
    """
    links.require_decays("amsgrad", b1=b1, b2=b2)
    links.require_nonnegative("amsgrad", eps=eps)
    core = optax.scale_by_amsgrad(
        b1,
        b2,
        eps,
        bias_correction_mu=bias_correction,
        bias_correction_nu=bias_correction,
    )
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
