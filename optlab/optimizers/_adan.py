"""Adan: momentum of the gradient and of its change from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByAdanState(NamedTuple):
    """State of `scale_by_adan`; all trees are shaped like the parameters.

    Attributes:
      count: Updates since the start or the last restart, shape (), int32.
      mean: Mean gradient, float32 or wider.
      change: Mean difference of successive gradients, alike.
      square: Mean square of the gradient that looks ahead, alike.
      previous: Last gradient, clipped if `max_grad_norm` is set, alike.
    """

    count: jax.Array
    mean: Any
    change: Any
    square: Any
    previous: Any


def scale_by_adan(
    *,
    b1: float | jax.Array = 0.98,
    b2: float | jax.Array = 0.92,
    b3: float | jax.Array = 0.99,
    eps: float | jax.Array = 1e-8,
    max_grad_norm: float | jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Nesterov momentum from gradients at the weights themselves, divided as in Adam.

    With d_t = g_t - g_{t-1}, and d_1 = 0,

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) d_t
        n_t = b3 n_{t-1} + (1 - b3) (g_t + b2 d_t)^2
        u_t = (m_t / (1 - b1^t) + b2 v_t / (1 - b2^t)) / (sqrt(n_t / (1 - b3^t)) + eps)

    Args:
      b1: Decay of the mean gradient, in [0, 1). The paper's betas are 1 minus these.
      b2: Decay of the mean difference, and its weight, in [0, 1).
      b3: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      max_grad_norm: Gradients of the whole tree are first multiplied by
        min(1, max_grad_norm / (norm + eps)), and so remembered; None for no clipping.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If a decay is outside [0, 1), eps is negative or max_grad_norm not
        above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_adan()
      >>> state = tx.init(jnp.ones(2))
      >>> for g in ([1.0, 1.0], [2.0, 0.5]):  # one gradient grows, one shrinks
      ...     updates, state = tx.update(jnp.array(g), state)
      >>> [f"{entry:.3f}" for entry in updates]
      ['0.907', '0.719']

    Source:
      See `adan`.
    """
    who = "scale_by_adan"
    links.require_decays(who, b1=b1, b2=b2, b3=b3)
    links.require_nonnegative(who, eps=eps, max_grad_norm=max_grad_norm)
    if isinstance(max_grad_norm, float | int) and max_grad_norm == 0:
        raise ValueError(
            f"{who}: max_grad_norm must be above 0, got 0; None is for no clipping"
        )

    def init(params: optax.Params) -> ScaleByAdanState:
        wide = links.widen(params)
        zeros = (optax.tree.zeros_like(wide) for _ in range(4))
        return ScaleByAdanState(jnp.zeros((), jnp.int32), *zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdanState]:
        del params, extra_args
        first = state.count == 0
        t = jnp.asarray(optax.safe_increment(state.count))
        c1, c2, c3 = 1 - b1**t, 1 - b2**t, 1 - b3**t
        factor = 1.0
        if max_grad_norm is not None:
            factor = jnp.minimum(1.0, max_grad_norm / (links.tree_norm(updates) + eps))

        def rule(g: jax.Array, m: Any, v: Any, n: Any, previous: Any) -> Any:
            g = factor * g
            d = jnp.where(first, 0.0, g - previous)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * d
            n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
            u = (m / c1 + b2 * v / c2) / (jnp.sqrt(n / c3) + eps)
            return u, m, v, n, g

        out, *buffers = links.each_leaf(rule, updates, *state[1:])
        return out, ScaleByAdanState(t, *buffers)

    return optax.GradientTransformationExtraArgs(init, update)


def restart_adan(state: Any) -> Any:
    """Makes Adan forget its gradients: the next update is that of a fresh optimizer.

    For the restarts of the paper, when a condition of the caller's choice holds. The
    count of the learning rate goes on, so that a schedule does.

    Args:
      state: State of `scale_by_adan`, or of anything around it. It may be traced:
        `jax.lax.cond(due, restart_adan, lambda state: state, state)`.

    Returns:
      The state with zeros in the place of Adan's own.

    Raises:
      ValueError: If there is no state of Adan inside.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_adan()
      >>> _, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> state = optimizers.restart_adan(state)
      >>> print(state.count, state.mean)
      0 [0.]

    Source:
      Xie et al., 2022, arXiv:2208.06677; their code zeroes m, v, n and t as well.
    """

    def is_adan(x: Any) -> bool:
        return isinstance(x, ScaleByAdanState)

    if not any(map(is_adan, jax.tree.leaves(state, is_leaf=is_adan))):
        raise ValueError(
            "restart_adan: there is no ScaleByAdanState in the state; give it what"
            " adan(...).init or its update has returned"
        )
    return jax.tree.map(
        lambda x: jax.tree.map(jnp.zeros_like, x) if is_adan(x) else x,
        state,
        is_leaf=is_adan,
    )


def adan(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.98,
    b2: float | jax.Array = 0.92,
    b3: float | jax.Array = 0.99,
    eps: float | jax.Array = 1e-8,
    max_grad_norm: float | jax.Array | None = None,
    weight_decay: float | jax.Array = 0.0,
    decay_order: str = "proximal",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan: Adam with Nesterov momentum through the differences of gradients.

    Its rates are five to ten times AdamW's. The update u_t is that of `scale_by_adan`;
    the decay divides, by the rate of the same step, and so never turns a weight round:

        w_t = (w_{t-1} - eta_t u_t) / (1 + eta_t weight_decay)

    State: 16 bytes a parameter in float32, twice AdamW's. `restart_adan` restarts.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean gradient, in [0, 1). The paper's betas are 1 minus these.
      b2: Decay of the mean difference, and its weight, in [0, 1).
      b3: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      max_grad_norm: Largest norm of the whole gradient, see `scale_by_adan`; None for
        no clipping.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      decay_order: 'proximal' as above; 'together' is w - eta (u + weight_decay w), the
        `no_prox` of the authors' code.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: As `scale_by_adan`; if weight_decay is negative, decay_order is
        unknown, or an update comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.adan(0.1, weight_decay=1.0)
      >>> w = jnp.array([3.3, -4.4])
      >>> updates, _ = tx.update(w, tx.init(w), w)
      >>> [f"{entry:.4f}" for entry in w + updates]  # 3.2 / 1.1 and -4.3 / 1.1
      ['2.9091', '-3.9091']

    Source:
      Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
      models", 2022, arXiv:2208.06677, and the authors' code. Differs from
      `optax.adan` (0.2.8), which weights d_t by 1 - b2 where the authors have b2, in
      n_t and in u_t, so that all but the first step are others, and which decays by
      'together'. Differs from the paper, as the authors' code does: averages start at
      zero and are corrected for it, where the paper starts m and n at g_1 and g_1^2.
    """
    links.require_nonnegative("adan", weight_decay=weight_decay)
    core = scale_by_adan(b1=b1, b2=b2, b3=b3, eps=eps, max_grad_norm=max_grad_norm)
    return links.descend(
        core,
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        decay_order=decay_order,
    )
