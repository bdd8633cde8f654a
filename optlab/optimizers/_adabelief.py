"""AdaBelief: steps are long where gradients come as their mean predicts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByAdabeliefState(NamedTuple):
    """State of `scale_by_adabelief`; all trees are shaped like the parameters.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mean: Mean gradient, float32 or wider.
      variance: Mean square of the surprise, with every eps added so far, alike.
      largest: Largest variance so far, alike; () unless `amsgrad` is in force.
    """

    count: jax.Array
    mean: Any
    variance: Any
    largest: Any


def scale_by_adabelief(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-16,
    rectify: bool = True,
    sgd_start: bool = True,
    amsgrad: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divides the mean gradient by how far gradients fall from that mean.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        s_t = b2 s_{t-1} + (1 - b2) (g_t - m_t)^2 + eps        (the new m_t)
        u_t = (m_t / (1 - b1^t)) / (sqrt(s_t / (1 - b2^t)) + eps)

    Rectified, with r_t the gradients that s_t averages in effect, at most r,

        r_t = r - 2 t b2^t / (1 - b2^t),   r = 2 / (1 - b2) - 1
        R_t^2 = (r_t - 4) (r_t - 2) r / ((r - 4) (r - 2) r_t)
        u_t = R_t (m_t / (1 - b1^t)) sqrt(1 - b2^t) / (sqrt(s_t) + eps)   if r_t >= 5
        u_t = m_t / (1 - b1^t)               before (b2 = 0.999: in the first 5 steps)

    Args:
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to s_t in every step, squared units of the gradient, and once more to
        the root: it piles up to eps / (1 - b2). The authors take 1e-16 for language
        models and 1e-8 for images.
      rectify: Whether the variance is left alone while it averages few gradients.
      sgd_start: Whether updates are the mean gradient until then; False: zero.
      amsgrad: Whether the largest s so far divides. Only without `rectify`, as in the
        authors' code: rectified updates take s itself.

    Returns:
      A transformation without learning rate and sign. Where a gradient never changes s
      goes to zero and updates become as long as eps allows: do not clip entries to a
      constant before it.

    Raises:
      ValueError: If a decay is outside [0, 1) or eps is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_adabelief(rectify=False)
      >>> state = tx.init(jnp.ones(2))
      >>> for g in ([1.0, 1.0], [1.0, -1.0]):  # as predicted, and a surprise
      ...     updates, state = tx.update(jnp.array(g), state)
      >>> [f"{entry:.3f}" for entry in updates]
      ['1.168', '-0.056']

    Source:
      See `adabelief`.
    """
    who = "scale_by_adabelief"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_nonnegative(who, eps=eps)
    keeps_largest = amsgrad and not rectify

    def init(params: optax.Params) -> ScaleByAdabeliefState:
        wide = links.widen(params)
        trees = [optax.tree.zeros_like(wide) for _ in range(2 + keeps_largest)]
        return _state(jnp.zeros((), jnp.int32), trees)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdabeliefState]:
        del params, extra_args
        t = jnp.asarray(optax.safe_increment(state.count))
        c1, c2 = 1 - b1**t, 1 - b2**t
        enough, factor = links.rectification(t, b2)

        def rule(g: jax.Array, m: Any, s: Any, *largest: Any) -> Any:
            m = b1 * m + (1 - b1) * g
            # Ending in a sum of two arrays, s is made once and not again for each use.
            s = b2 * s + ((1 - b2) * (g - m) ** 2 + eps)
            largest = tuple(jnp.maximum(s, old) for old in largest)
            mean = m / c1
            if rectify:
                u = factor * jnp.sqrt(c2) * mean / (jnp.sqrt(s) + eps)
                u = jnp.where(enough, u, mean if sgd_start else 0.0)
            else:
                (divisor,) = largest or (s,)
                u = mean / (jnp.sqrt(divisor) / jnp.sqrt(c2) + eps)
            return u, m, s, *largest

        buffers = state[1:] if keeps_largest else state[1:3]
        out, *buffers = links.each_leaf(rule, updates, *buffers)
        return out, _state(t, buffers)

    return optax.GradientTransformationExtraArgs(init, update)


def _state(count: jax.Array, trees: list[Any]) -> ScaleByAdabeliefState:
    return ScaleByAdabeliefState(count, *trees, *[()] * (3 - len(trees)))


def adabelief(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-16,
    rectify: bool = True,
    sgd_start: bool = True,
    amsgrad: bool = False,
    weight_decay: float | jax.Array = 0.0,
    decoupled: bool = True,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief: Adam that divides by the spread of gradients, not by their size.

    The update u_t is that of `scale_by_adabelief`, then

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})    decoupled
        g_t = g_t + weight_decay w_{t-1}, before anything     otherwise

    State: 8 bytes a parameter in float32, 12 with `amsgrad`.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to s_t in every step and to its root.
      rectify: Whether the variance is left alone while it averages few gradients.
      sgd_start: Whether updates are the mean gradient until then; False: zero.
      amsgrad: Whether the largest s so far divides, if not rectified.
      weight_decay: Decay, multiplied by the learning rate if decoupled.
      decoupled: Whether decay goes round the averages, as above. The authors have it
        coupled for CIFAR. Their `fixed_decay`, no rate on the decay, is
        `optax.chain(adabelief(...), optax.add_decayed_weights(-weight_decay))`.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: As `scale_by_adabelief`; if weight_decay is negative, or an update
        comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.adabelief(0.1)
      >>> g = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(g, tx.init(g), g)  # rectified: plain at first
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.3000', '0.4000']

    Source:
      Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed
      gradients", 2020, arXiv:2010.07468, and the authors' package 0.2.1. Differs from
      that code: r_t is computed so that float32 does not decide otherwise. Differs
      from `optax.adabelief` (0.2.8): one eps for its two, weight decay, `rectify`
      and `amsgrad`.
    """
    links.require_nonnegative("adabelief", weight_decay=weight_decay)
    core = scale_by_adabelief(
        b1=b1,
        b2=b2,
        eps=eps,
        rectify=rectify,
        sgd_start=sgd_start,
        amsgrad=amsgrad,
    )
    if decoupled:
        return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
    coupled = optax.chain(links.add_decayed_weights(weight_decay, mask), core)
    return links.descend(coupled, learning_rate)
