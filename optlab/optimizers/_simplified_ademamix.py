"""Simplified AdEMAMix: one long memory of gradients, and the gradient once more."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleBySimplifiedAdemamixState(NamedTuple):
    """State of `scale_by_simplified_ademamix`; trees are shaped like the parameters.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mu: Sum of gradients, float32 or wider.
      nu: Mean square of the gradient, alike.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_simplified_ademamix(
    *,
    b1: float | jax.Array = 0.99,
    b2: float | jax.Array = 0.95,
    alpha: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `simplified_ademamix`.

    Args:
      b1: As in `simplified_ademamix`, and so are all others.
      b2: Decay of the mean square.
      alpha: Weight of the gradient beside the sum.
      eps: Added to the root.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If a decay is outside [0, 1), or alpha or eps is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_simplified_ademamix(b1=0.5)
      >>> g, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for _ in range(3):
      ...     updates, state = tx.update(g, state)
      >>> print(f"{updates[0]:.3f}")  # 1 + 1/2 + 1/4
      1.750

    Source:
      See `simplified_ademamix`.
    """
    who = "scale_by_simplified_ademamix"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_nonnegative(who, alpha=alpha, eps=eps)

    def init(params: optax.Params) -> ScaleBySimplifiedAdemamixState:
        wide = links.widen(params)
        trees = (optax.tree.zeros_like(wide) for _ in range(2))
        return ScaleBySimplifiedAdemamixState(jnp.zeros((), jnp.int32), *trees)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySimplifiedAdemamixState]:
        del params, extra_args
        t = jnp.asarray(optax.safe_increment(state.count))

        def rule(g: jax.Array, m: Any, v: Any) -> Any:
            m = b1 * m + g
            v = b2 * v + (1 - b2) * g * g
            return (m + alpha * g) / (jnp.sqrt(v / (1 - b2**t)) + eps), m, v

        out, *buffers = links.each_leaf(rule, updates, *state[1:])
        return out, ScaleBySimplifiedAdemamixState(t, *buffers)

    return optax.GradientTransformationExtraArgs(init, update)


def simplified_ademamix(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.99,
    b2: float | jax.Array = 0.95,
    alpha: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix whose fast mean is the gradient itself.

        m_t = b1 m_{t-1} + g_t                                           a sum
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = (m_t + alpha g_t) / (sqrt(v_t / (1 - b2^t)) + eps)
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    m_t is a sum: without alpha updates come to be 1 / (1 - b1) times as long as Adam's,
    and rates are to be as many times smaller. State: 8 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the sum, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      alpha: Weight of the gradient beside the sum.
      eps: Added to the root, in units of the gradient.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If a decay is outside [0, 1), alpha or eps is negative, or an update
        comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.simplified_ademamix(0.1, alpha=2.0)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)  # 1 + 2
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.3000', '0.3000']

    Source:
      Morwani et al., "Connections between schedule-free optimizers, AdEMAMix, and
      accelerated SGD variants", 2025, arXiv:2502.02431, and the authors' code, of which
      the warm-up of b1 and the correction of the sum are not here. Differs from
      `optax.contrib.simplified_ademamix` (0.2.8), whose mean square is not a number
      once a square overflows; float32 accumulators for bfloat16 parameters, step and
      rate in the state.
    """
    core = scale_by_simplified_ademamix(b1=b1, b2=b2, alpha=alpha, eps=eps)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
