"""Sophia: momentum over curvature, and no entry moves further than a sign would."""

from typing import Any

import jax
import optax

from optlab import estimators, links


def sophia(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.965,
    b2: float | jax.Array = 0.99,
    gamma: float | jax.Array = 0.01,
    clip: float | jax.Array = 1.0,
    eps: float | jax.Array = 1e-8,
    every: int = 10,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia: the mean gradient over the curvature, clipped entry by entry.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = clamp((m_t / (1 - b1^t)) / max(gamma h, eps), -clip, clip)
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})
        h = b2 h + (1 - b2) D_t                        (after the step, each `every`)

    h starts at zero, so the first step is eta clip sign(g). A negative h counts as
    none. D_t is the extra argument `hessian_diag`, or `estimators.hutchinson` of
    `loss_fn` and `key` (Sophia-H). For Sophia-G give B ghat^2, where ghat is the
    gradient of the mean loss of B examples whose labels are drawn from the model.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean gradient, in [0, 1).
      b2: Decay of the mean curvature, in [0, 1).
      gamma: Multiple of the curvature that divides; the larger, the fewer entries are
        clipped.
      clip: Largest entry of u.
      eps: Smallest divisor.
      every: Steps from one D to the next.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; both means are float32 or wider.

    Raises:
      ValueError: If every is below 1; as `estimators.given_or_estimated_diagonal`.
      TypeError: If an update has neither `hessian_diag` nor `loss_fn` and `key`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> x, tx = jnp.array([3.0, -4.0]), optimizers.sophia(0.1)
      >>> updates, _ = tx.update(x, tx.init(x), x, hessian_diag=jnp.ones(2))
      >>> print(updates)
      [-0.1  0.1]

    Source:
      Liu et al., "Sophia", 2023, arXiv:2305.14342. The core is Optax's; its estimator
      is not, which takes `obj_fn`, keeps a key of its own and cannot be given a
      diagonal. Differs from the authors' code, as Optax does: the mean gradient is
      corrected for its start, and max(gamma h, eps) stands for rho B h + 1e-15.
    """
    if int(every) != every or every < 1:
        raise ValueError(f"sophia: every must be at least 1, got {every}")
    # Its own rate and decay are put out: the rate belongs into the state.
    core = optax.contrib.sophia(
        -1.0,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=0.0,
        gamma=gamma,
        clip_threshold=clip,
        update_interval=every,
        hessian_diagonal_fn=_diagonal(),
    )
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)


def _diagonal() -> optax.GradientTransformationExtraArgs:
    """The link that Optax's Sophia asks for the diagonal of the Hessian."""

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        diagonal = estimators.given_or_estimated_diagonal(
            "sophia", updates, params, extra_args
        )
        return links.widen(diagonal), state

    return optax.GradientTransformationExtraArgs(init, update)
