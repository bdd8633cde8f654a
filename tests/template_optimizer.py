"""AdaMomentum: Adam whose second moment averages the squared momentum.

The template for a new optimizer: copy this file to `optlab/optimizers/_name.py`, keep
the order state, core, alias, and change what the paper changes. The suite runs it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByAdamomentumState(NamedTuple):
    """State of `scale_by_adamomentum`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mu: Mean gradient, shaped like the parameters, float32 or wider.
      nu: Mean square of `mu`, shaped like the parameters, float32 or wider.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adamomentum(
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-16,
) -> optax.GradientTransformationExtraArgs:
    """Divides the momentum by the root mean square of the momentum.

    Adam measures the size of single gradients; this measures the size of what it
    moves along, so noise that averages out does not shorten the steps.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) m_t^2 + eps
        u_t = (m_t / (1 - b1^t)) / sqrt(v_t / (1 - b2^t))

    Args:
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the mean square in every step, in units of the gradient squared.

    Returns:
      A transformation without learning rate and sign; a zero gradient at the start
      gives a zero update.

    Example:
      >>> import jax.numpy as jnp
      >>> from tests import template_optimizer
      >>> tx = template_optimizer.scale_by_adamomentum()
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [f"{entry:.2f}" for entry in updates]  # 1 / (1 - b1): the momentum is young
      ['10.00', '-10.00']

    Source:
      Wang et al., "Rethinking Adam: a twofold exponential moving average approach",
      2021, arXiv:2106.11514. The authors' code was not compared.
    """

    def init(params: optax.Params) -> ScaleByAdamomentumState:
        # Two calls, not one tree twice: the state must not alias itself.
        wide = links.widen(params)
        mu, nu = optax.tree.zeros_like(wide), optax.tree.zeros_like(wide)
        return ScaleByAdamomentumState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdamomentumState]:
        del params, extra_args
        count = jnp.asarray(optax.safe_increment(state.count))

        def mean(m: jax.Array, g: jax.Array) -> jax.Array:
            return (b1 * m + (1 - b1) * g).astype(m.dtype)

        def mean_square(v: jax.Array, m: jax.Array) -> jax.Array:
            return (b2 * v + (1 - b2) * m * m + eps).astype(v.dtype)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            u = m / (1 - b1**count) / jnp.sqrt(v / (1 - b2**count))
            return u.astype(g.dtype)

        mu = jax.tree.map(mean, state.mu, links.widen(updates))
        nu = jax.tree.map(mean_square, state.nu, mu)
        out = jax.tree.map(direction, mu, nu, updates)
        return out, ScaleByAdamomentumState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def adamomentum(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-16,
) -> optax.GradientTransformationExtraArgs:
    """AdaMomentum: each entry moves by its mean gradient over that mean's own size.

    The update is that of `scale_by_adamomentum`, then

        w_t = w_{t-1} - eta_t u_t

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the mean square in every step.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from tests import template_optimizer
      >>> tx = template_optimizer.adamomentum(0.1)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [f"{entry:.2f}" for entry in updates]
      ['-1.00', '1.00']

    Source:
      As `scale_by_adamomentum`.
    """
    return optax.chain(
        scale_by_adamomentum(b1, b2, eps), links.scale_by_learning_rate(learning_rate)
    )
