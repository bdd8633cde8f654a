"""RAdam: Adam that does not divide by a mean square of too few gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByRadamState(NamedTuple):
    """State of `scale_by_radam`; both trees are shaped like the parameters.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mu: Mean gradient, float32 or wider.
      nu: Mean square of the gradient, alike.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_radam(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    sgd_start: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction times a factor that makes up for the variance of its divisor.

    With r_t and R_t of `links.rectification`,

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = R_t sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(v_t) + eps)   if r_t >= 5
        u_t = m_t / (1 - b1^t), or 0                                    until then

    Args:
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in (0, 1); with 0.999 step 6 is the first that
        divides, with 2/3 or less none ever does.
      eps: Added to the root before its bias is corrected, in units of the gradient.
      sgd_start: Whether updates are the mean gradient until then; False: zero.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If a decay is outside [0, 1) or eps is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_radam()
      >>> g = jnp.array([30.0])
      >>> state = tx.init(g)
      >>> for t in range(1, 7):
      ...     updates, state = tx.update(g, state)
      ...     if t > 4:
      ...         print(f"{updates[0]:.3f}")
      30.000
      0.026

    Source:
      See `radam`.
    """
    who = "scale_by_radam"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_nonnegative(who, eps=eps)

    def init(params: optax.Params) -> ScaleByRadamState:
        wide = links.widen(params)
        zeros = optax.tree.zeros_like
        return ScaleByRadamState(jnp.zeros((), jnp.int32), zeros(wide), zeros(wide))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByRadamState]:
        del params, extra_args
        t = jnp.asarray(optax.safe_increment(state.count))
        c1, c2 = 1 - b1**t, 1 - b2**t
        enough, factor = links.rectification(t, b2)

        def rule(g: jax.Array, m: Any, v: Any) -> Any:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            mean = m / c1
            u = factor * jnp.sqrt(c2) * mean / (jnp.sqrt(v) + eps)
            return jnp.where(enough, u, mean if sgd_start else 0.0), m, v

        out, *buffers = links.each_leaf(rule, updates, *state[1:])
        return out, ScaleByRadamState(t, *buffers)

    return optax.GradientTransformationExtraArgs(init, update)


def radam(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    sgd_start: bool = True,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """RAdam: AdamW with a warm-up of its own, from the variance of its divisor.

    The update u_t is that of `scale_by_radam`, then

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule. The first steps
        are those of SGD at the same rate.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in (0, 1).
      eps: Added to the root, in units of the gradient.
      sgd_start: Whether those first steps are made at all.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: As `scale_by_radam`, or if an update comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.radam(0.1)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)  # plain at first
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.3000', '0.4000']

    Source:
      L. Liu et al., "On the variance of the adaptive learning rate and beyond", 2019,
      arXiv:1908.03265, and the authors' code, whose are the threshold (the paper has
      r_t > 4) and the place of eps. Differs from that code: its `sgd_start` is off by
      default, and while it idles it does not decay. Differs from `optax.radam` (0.2.8),
      which takes r_t for a difference of large numbers: in float32 with b2 = 0.9999 it
      divides from the second step on, where the sixth is the first that should.
    """
    core = scale_by_radam(b1=b1, b2=b2, eps=eps, sgd_start=sgd_start)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
