"""AdaGrad: gradients divided by the root of the sum of all squares so far."""

from typing import Any

import jax
import optax

from optlab import links


def adagrad(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    eps: float | jax.Array = 1e-7,
    initial_square: float | jax.Array = 0.1,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gives entries that rarely have a gradient long steps, and never forgets.

        s_t = s_{t-1} + g_t^2,   s_0 = initial_square
        u_t = g_t / sqrt(s_t + eps)
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Under constant gradients steps shrink as 1 / sqrt(t): a constant rate decays by
    itself. State: 4 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      eps: Added to the sum, in squared units of the gradient.
      initial_square: First sum, alike; it makes the first steps shorter than the rate.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; the sum is float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If eps or initial_square is negative, or an update comes without the
        parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.adagrad(1.0, eps=0.0, initial_square=0.0)
      >>> g = jnp.array([3.0])
      >>> state = tx.init(g)
      >>> for _ in range(4):
      ...     updates, state = tx.update(g, state, g)
      >>> print(updates)  # one over the root of 4
      [-0.5]

    Source:
      J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning
      and stochastic optimization", 2011, section 1.1, diagonal. The core is Optax's
      `scale_by_rss`. Differs from the paper: its constant is added to the root. Differs
      from `optax.adagrad`: decoupled decay, a float32 sum for bfloat16 parameters, step
      and rate in the state. UNVERIFIED: the equations are from memory of the paper;
      they are what Optax computes.
    """
    links.require_nonnegative("adagrad", eps=eps, initial_square=initial_square)
    core = optax.scale_by_rss(initial_square, eps)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
