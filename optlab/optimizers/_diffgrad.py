"""diffGrad: Adam that goes slowly where the gradient hardly changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByDiffgradState(NamedTuple):
    """State of `scale_by_diffgrad`; all trees are shaped like the parameters.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mu: Mean gradient, float32 or wider.
      nu: Mean square of the gradient, alike.
      previous: Last gradient, with the decay if that is coupled, alike.
    """

    count: jax.Array
    mu: Any
    nu: Any
    previous: Any


def scale_by_diffgrad(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies Adam's direction by a friction of 1/2 to 1, entry by entry.

    With g_0 = 0,

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        x_t = 1 / (1 + exp(-|g_{t-1} - g_t|))
        u_t = sqrt(1 - b2^t) / (1 - b1^t) x_t m_t / (sqrt(v_t) + eps)

    The friction has a scale, that of the gradient: where gradients are far below 1 it
    is 1/2 everywhere, and the method is Adam at half its rate.

    Args:
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of the gradient.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If a decay is outside [0, 1) or eps is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_diffgrad()
      >>> g = jnp.array([3.0, 0.003])
      >>> state = tx.init(g)
      >>> for _ in range(2):  # a first gradient, and then no change
      ...     updates, state = tx.update(g, state)
      ...     print([f"{entry:.3f}" for entry in updates])
      ['0.953', '0.501']
      ['0.500', '0.500']

    Source:
      See `diffgrad`.
    """
    who = "scale_by_diffgrad"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_nonnegative(who, eps=eps)

    def init(params: optax.Params) -> ScaleByDiffgradState:
        wide = links.widen(params)
        zeros = (optax.tree.zeros_like(wide) for _ in range(3))
        return ScaleByDiffgradState(jnp.zeros((), jnp.int32), *zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByDiffgradState]:
        del params, extra_args
        t = jnp.asarray(optax.safe_increment(state.count))
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)

        def rule(g: jax.Array, m: Any, v: Any, previous: Any) -> Any:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            friction = jax.nn.sigmoid(jnp.abs(previous - g))
            return correction * friction * m / (jnp.sqrt(v) + eps), m, v, g

        out, *buffers = links.each_leaf(rule, updates, *state[1:])
        return out, ScaleByDiffgradState(t, *buffers)

    return optax.GradientTransformationExtraArgs(init, update)


def diffgrad(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    decoupled: bool = False,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """diffGrad: Adam with a friction that holds it where the slope stays the same.

    The update u_t is that of `scale_by_diffgrad`, then

        g_t = g_t + weight_decay w_{t-1}, before anything     by default
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})    decoupled

    State: 12 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of the gradient.
      weight_decay: Decay; multiplied by the learning rate if decoupled.
      decoupled: Whether decay goes round the averages; the authors' does not.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: As `scale_by_diffgrad`; if weight_decay is negative, or an update
        comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.diffgrad(0.1)
      >>> g = jnp.array([3.0, -0.003])
      >>> updates, _ = tx.update(g, tx.init(g), g)
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.0953', '0.0501']

    Source:
      Dubey et al., "diffGrad: an optimization method for convolutional neural
      networks", 2019, arXiv:1909.11015, and the authors' second release. Differs from
      their first release, with which the paper's runs were made: there the previous
      gradient is the buffer of the present one, so that from the second step on the
      friction is 1/2 and the method Adam at half its rate.
    """
    links.require_nonnegative("diffgrad", weight_decay=weight_decay)
    core = scale_by_diffgrad(b1=b1, b2=b2, eps=eps)
    if decoupled:
        return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
    coupled = optax.chain(links.add_decayed_weights(weight_decay, mask), core)
    return links.descend(coupled, learning_rate)
