"""AdEMAMix: AdamW with a second, far longer memory of gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links


def ademamix(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    b3: float | jax.Array = 0.9999,
    alpha: float | jax.Array = 5.0,
    alpha_warmup_steps: int | None = None,
    b3_warmup_steps: int | None = None,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds a slow mean of gradients to Adam's fast one.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        s_t = b3_t s_{t-1} + (1 - b3_t) g_t                 no correction of bias
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = (m_t / (1 - b1^t) + alpha_t s_t) / (sqrt(v_t / (1 - b2^t)) + eps)
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Both warm-ups keep training stable while s_t fills; the paper makes them as long as
    the run. With a = min(t / warm-up steps, 1) alpha grows as a line and the half-life
    of the slow mean, from the fast one's, as nearly one:

        alpha_t = a alpha
        1 / ln(b3_t) = (1 - a) / ln(b1) + a / ln(b3)

    State: 12 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the fast mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      b3: Decay of the slow mean, in [0, 1): 0.9999 is a memory of 10,000 steps; shorter
        runs want 0.999.
      alpha: Weight of the slow mean.
      alpha_warmup_steps: Steps until alpha is reached; None for alpha at once.
      b3_warmup_steps: Steps until b3 is reached; None for b3 at once.
      eps: Added to the root, in units of the gradient.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If a decay is outside [0, 1), another number negative, warm-up steps
        below 1, or an update comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.ademamix(0.1, b3=0.9)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)  # 1 + 5 * 0.1 times Adam's
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.1500', '0.1500']

    Source:
      Pagliardini et al., "The AdEMAMix optimizer: better, faster, older", 2024,
      arXiv:2409.03137, and the authors' code for PyTorch, whose warm-ups count from 1
      as here (their code for Optax counts from 0). The core is Optax's
      `scale_by_ademamix`. Differs from `optax.contrib.ademamix`: the warm-ups,
      float32 accumulators for bfloat16 parameters, step and rate in the state. Differs
      from the authors' code: alpha defaults to 5, as in the paper, and not to 2.
    """
    links.require_decays("ademamix", b1=b1, b2=b2, b3=b3)
    links.require_nonnegative("ademamix", alpha=alpha, eps=eps)
    for name, steps in (("alpha", alpha_warmup_steps), ("b3", b3_warmup_steps)):
        if steps is not None and steps < 1:
            raise ValueError(
                f"ademamix: {name}_warmup_steps must be 1 or more, got {steps}; None is"
                " for no warm-up"
            )
    core = optax.contrib.scale_by_ademamix(
        b1,
        b2,
        _slow_decay(b1, b3, b3_warmup_steps) if b3_warmup_steps else b3,
        _weight(alpha, alpha_warmup_steps) if alpha_warmup_steps else alpha,
        eps,
    )
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)


def _share(count: jax.Array, steps: int) -> jax.Array:
    # A float, as the largest count plus 1 is no int32.
    return jnp.minimum((count.astype(float) + 1) / steps, 1.0)


def _weight(alpha: Any, steps: int) -> Callable[[Any], jax.Array]:
    return lambda count: alpha * _share(count, steps)


def _slow_decay(b1: Any, b3: Any, steps: int) -> Callable[[Any], jax.Array]:
    def decay(count: jax.Array) -> jax.Array:
        a = _share(count, steps)
        return jnp.exp(1 / ((1 - a) / jnp.log(b1) + a / jnp.log(b3)))

    return decay
