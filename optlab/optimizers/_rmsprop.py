"""RMSProp: gradients divided by the root of their mean square."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByRmspropState(NamedTuple):
    """State of `scale_by_rmsprop`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      square: Mean square of the gradient, or its variance if centered, shaped like the
        parameters, float32 or wider.
      mean: Mean gradient, alike; () unless centered.
    """

    count: jax.Array
    square: Any
    mean: Any


def scale_by_rmsprop(
    *,
    b2: float | jax.Array = 0.9,
    eps: float | jax.Array = 1e-8,
    centered: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divides by a running root mean square, or by a running standard deviation.

        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = g_t / (sqrt(v_t) + eps)

    Centered, v is that mean square less the square of the mean m_t, which as a
    difference may come out below zero. The same number as a sum of squares is

        v_t = b2 (v_{t-1} + (1 - b2) (g_t - m_{t-1})^2)
        m_t = b2 m_{t-1} + (1 - b2) g_t

    Args:
      b2: Decay of the averages, in [0, 1).
      eps: Added to the root, in units of the gradient.
      centered: Whether the mean is taken out. Where a gradient never changes v goes to
        zero, and updates become as long as eps allows.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If the decay is outside [0, 1) or eps is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> g = jnp.array([3.0, -4.0])
      >>> for centered in (False, True):
      ...     tx = optimizers.scale_by_rmsprop(centered=centered)
      ...     updates, _ = tx.update(g, tx.init(g))
      ...     print([f"{entry:.4f}" for entry in updates])
      ['3.1623', '-3.1623']
      ['3.3333', '-3.3333']

    Source:
      See `rmsprop`.
    """
    who = "scale_by_rmsprop"
    links.require_decays(who, b2=b2)
    links.require_nonnegative(who, eps=eps)

    def init(params: optax.Params) -> ScaleByRmspropState:
        wide = links.widen(params)
        mean = optax.tree.zeros_like(wide) if centered else ()
        zeros = optax.tree.zeros_like(wide)
        return ScaleByRmspropState(jnp.zeros((), jnp.int32), zeros, mean)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByRmspropState]:
        del params, extra_args

        def rule(g: jax.Array, v: Any, *mean: Any) -> Any:
            if centered:
                (m,) = mean
                v = b2 * (v + (1 - b2) * (g - m) ** 2)
                mean = (b2 * m + (1 - b2) * g,)
            else:
                v = b2 * v + (1 - b2) * g * g
            return g / (jnp.sqrt(v) + eps), v, *mean

        buffers = state[1:] if centered else state[1:2]
        out, *buffers = links.each_leaf(rule, updates, *buffers)
        count = jnp.asarray(optax.safe_increment(state.count))
        square, mean = buffers if centered else (*buffers, ())
        return out, ScaleByRmspropState(count, square, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def rmsprop(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b2: float | jax.Array = 0.9,
    eps: float | jax.Array = 1e-8,
    centered: bool = False,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp, with or without momentum.

    The update u_t is that of `scale_by_rmsprop`, then

        m_t = momentum m_{t-1} + u_t                 (u_t + momentum m_t if nesterov)
        w_t = w_{t-1} - eta_t (m_t + weight_decay w_{t-1})

    The average starts at zero and is not corrected for it: with b2 = 0.9 the first
    step is 3.2 times as long as one of Adam.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      centered: Whether the variance divides, see `scale_by_rmsprop`.
      momentum: Decay of the sum of updates, in [0, 1); None keeps no sum at all.
      nesterov: Whether the update is mixed in once more, as above.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: As `scale_by_rmsprop`, or if an update comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.rmsprop(0.1)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)  # over sqrt(0.1 g^2)
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.3162', '0.3162']

    Source:
      T. Tieleman, G. Hinton, "Neural networks for machine learning", lecture 6.5, 2012;
      centered: A. Graves, 2013, arXiv:1308.0850, section 4.2, whose eps is inside the
      root; the place of eps here is PyTorch's. Differs from `optax.rmsprop` (0.2.8),
      which adds eps inside the root, applies the rate before the momentum, and whose
      centered form takes the root of a difference: with equal gradients in every step
      it is not a number after some 130 of them.
    """
    core = scale_by_rmsprop(b2=b2, eps=eps, centered=centered)
    if momentum is not None:
        links.require_decays("rmsprop", momentum=momentum)
        core = optax.chain(core, optax.trace(momentum, nesterov))
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
