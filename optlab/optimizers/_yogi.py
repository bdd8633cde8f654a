"""Yogi: Adam whose mean square forgets large gradients slowly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByYogiState(NamedTuple):
    """State of `scale_by_yogi`; both trees are shaped like the parameters.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mu: Mean gradient, float32 or wider.
      nu: Additive mean square of the gradient, alike.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_yogi(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-3,
    initial_square: float | jax.Array = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Divides by a mean square that moves by the gradient's size, not by the gap.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = v_{t-1} - (1 - b2) sign(v_{t-1} - g_t^2) g_t^2
        u_t = sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(v_t) + eps)

    m starts at 0 and v at `initial_square`. Where gradients become small v_t falls by
    (1 - b2) g_t^2, not by a share of itself: after a quiet stretch the effective rate
    has not jumped up.

    Args:
      b1: Decay of the mean, in [0, 1).
      b2: 1 minus the step of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of the gradient.
      initial_square: First mean square, 0 or more.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If a decay is outside [0, 1), or eps or initial_square is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_yogi(b2=0.5)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (4.0, 0.1):  # a large gradient, and then a small one
      ...     _, state = tx.update(jnp.array([g]), state)
      >>> print(f"{state.nu[0]:.3f}")  # 8 - 0.005; Adam's would be 4.005
      7.995

    Source:
      See `yogi`.
    """
    who = "scale_by_yogi"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_nonnegative(who, eps=eps, initial_square=initial_square)

    def init(params: optax.Params) -> ScaleByYogiState:
        wide = links.widen(params)
        nu = optax.tree.full_like(wide, initial_square)
        count = jnp.zeros((), jnp.int32)
        return ScaleByYogiState(count, optax.tree.zeros_like(wide), nu)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByYogiState]:
        del params, extra_args
        t = jnp.asarray(optax.safe_increment(state.count))
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)

        def rule(g: jax.Array, m: Any, v: Any) -> Any:
            square = g * g
            m = b1 * m + (1 - b1) * g
            # Both infinite, they are equal; their difference is not a number.
            way = jnp.where(square == v, 0.0, jnp.where(square > v, square, -square))
            v = jnp.where(way == 0, v, v + (1 - b2) * way)
            return correction * m / (jnp.sqrt(v) + eps), m, v

        out, *buffers = links.each_leaf(rule, updates, *state[1:])
        return out, ScaleByYogiState(t, *buffers)

    return optax.GradientTransformationExtraArgs(init, update)


def yogi(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-3,
    initial_square: float | jax.Array = 1e-6,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Yogi: Adam whose effective rate cannot rise quickly.

    The update u_t is that of `scale_by_yogi`, then

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule; TensorFlow
        Addons has 1e-2, ten times Adam's.
      b1: Decay of the mean, in [0, 1).
      b2: 1 minus the step of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient; far larger than Adam's.
      initial_square: First mean square.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: As `scale_by_yogi`, or if an update comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.yogi(0.1)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.0990', '0.0992']

    Source:
      Zaheer et al., "Adaptive methods for nonconvex optimization", 2018, algorithm 2,
      and the code in TensorFlow Addons, whose are the corrections of bias, the place of
      eps and the defaults. Differs from `optax.yogi` (0.2.8), which starts the mean at
      1e-6 as well, so that weights without a gradient move, and adds eps to the
      corrected root; from both: decoupled decay.
    """
    core = scale_by_yogi(b1=b1, b2=b2, eps=eps, initial_square=initial_square)
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
