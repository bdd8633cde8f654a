"""SGDP: momentum that does not make scale-invariant weights longer."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees


class ScaleBySgdpState(NamedTuple):
    """State of `scale_by_sgdp`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: Sum of gradients, shaped like the parameters, float32 or wider.
    """

    count: jax.Array
    momentum: Any


def scale_by_sgdp(
    *,
    momentum: float | jax.Array = 0.9,
    dampening: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    delta: float | jax.Array = 0.1,
    wd_ratio: float | jax.Array = 0.1,
    nesterov: bool = False,
    project_momentum: bool = False,
    mask: Any = None,
    channel_axis: int | tuple[int, ...] | None = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """A momentum without its radial part, and the decay that goes with it.

    Args:
      momentum: As in `sgdp`, and so are all others.
      dampening: Part of the gradient that is left out.
      eps: Added to the lengths of weights.
      weight_decay: Decoupled decay.
      delta: Threshold of the cosine.
      wd_ratio: Factor on the decay of scale-invariant weights.
      nesterov: Whether the gradient is mixed in once more.
      project_momentum: Whether the sum itself loses its radial part.
      mask: Which leaves decay.
      channel_axis: Axis of the channels.
      views: Function to a tree of `trees.MatrixView`, or that tree.

    Returns:
      A transformation without learning rate and sign that needs the parameters.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a number is out of range, a leaf has no such axis, or both nesterov
        and project_momentum are asked for.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_sgdp(weight_decay=0.5, channel_axis=0)
      >>> w, g = jnp.array([[4.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> updates, _ = tx.update(g, tx.init(w), w)
      >>> print(updates.round(4))
      [[2. 2.]]

    Source:
      See `sgdp`.
    """
    links.require_decays("scale_by_sgdp", momentum=momentum)
    links.require_nonnegative("scale_by_sgdp", eps=eps, delta=delta, wd_ratio=wd_ratio)
    if isinstance(dampening, numbers.Real) and not 0 <= dampening <= 1:
        raise ValueError(f"scale_by_sgdp: dampening must be 0 to 1, got {dampening}")
    if nesterov and project_momentum:
        raise ValueError(
            "scale_by_sgdp: project_momentum keeps the projected step as the sum, which"
            " with nesterov is another vector; turn one of them off"
        )
    decay = links.add_decayed_weights(weight_decay / (1 - momentum), mask)

    def init(params: optax.Params) -> ScaleBySgdpState:
        zeros = optax.tree.zeros_like(links.widen(params))
        return ScaleBySgdpState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySgdpState]:
        del extra_args
        gradients = links.widen(updates)

        def add(share: Any, g: jax.Array, m: jax.Array) -> jax.Array:
            return (share * g + momentum * m).astype(m.dtype)

        sums = jax.tree.map(
            lambda g, m: add(1 - dampening, g, m), gradients, state.momentum
        )
        ahead = lambda g, m: add(1, g, m)  # noqa: E731
        directions = jax.tree.map(ahead, gradients, sums) if nesterov else sums
        directions, weights = links.tangent(
            "scale_by_sgdp",
            directions,
            gradients,
            params,
            delta=delta,
            eps=eps,
            wd_ratio=wd_ratio,
            channel_axis=channel_axis,
            views=views,
        )
        out, _ = decay.update(directions, decay.init(weights), weights)
        out = jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)
        kept = directions if project_momentum else sums
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, ScaleBySgdpState(count, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def sgdp(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float | jax.Array = 0.9,
    dampening: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    delta: float | jax.Array = 0.1,
    wd_ratio: float | jax.Array = 0.1,
    nesterov: bool = False,
    project_momentum: bool = False,
    mask: Any = None,
    channel_axis: int | tuple[int, ...] | None = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """SGDP: momentum that leaves the length of scale-invariant weights alone.

    What `adamp` is to AdamW: steps of layers whose gradient is at right angles to their
    weights lose the part along the weights.

        m_t = momentum m_{t-1} + (1 - dampening) g_t
        q_t = m_t                                    (g_t + momentum m_t if nesterov)
        q_t, r = q_t - n (n . q_t), wd_ratio     if found by `links.tangent`, else r = 1
        w_t = w_{t-1} - eta_t (q_t + r weight_decay / (1 - momentum) w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      momentum: Decay of the sum, in [0, 1).
      dampening: Part of every gradient, the first as well, that the sum leaves out.
      eps: Added to the lengths of weights.
      weight_decay: Decoupled decay; as above it is divided by 1 - momentum, as if it
        went through the sum.
      delta: As in `adamp`.
      wd_ratio: Factor on the decay of scale-invariant weights.
      nesterov: Whether the gradient is mixed in once more, as above.
      project_momentum: Whether m_t becomes the projected q_t, without nesterov.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      channel_axis: As in `adamp`: -1 for Flax kernels; None goes by `views`.
      views: As in `adamp`.

    Returns:
      A transformation that needs the parameters; the sum is float32 or wider, updates
      keep their dtype.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a number is out of range, a leaf has no such axis, or both nesterov
        and project_momentum are asked for.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> w = jnp.array([[3.0, 4.0], [1.0, 0.0]])  # (out, in)
      >>> g = jnp.array([[4.0, -3.0], [0.0, 2.0]])
      >>> tx = optimizers.sgdp(0.1, weight_decay=0.01, channel_axis=0)
      >>> updates, _ = tx.update(g, tx.init(w), w)
      >>> [f"{entry:.3f}" for entry in (w + updates).ravel()]
      ['2.597', '4.296', '0.999', '-0.200']

    Source:
      B. Heo et al., "AdamP", 2020, arXiv:2006.08217, algorithm 1, and the authors'
      code. Differs from the authors' code: as in `adamp`; and theirs, without
      nesterov, projects in place and so keeps the projected sum, which
      `project_momentum` does.
    """
    core = scale_by_sgdp(
        momentum=momentum,
        dampening=dampening,
        eps=eps,
        weight_decay=weight_decay,
        delta=delta,
        wd_ratio=wd_ratio,
        nesterov=nesterov,
        project_momentum=project_momentum,
        mask=mask,
        channel_axis=channel_axis,
        views=views,
    )
    rate = links.scale_by_learning_rate(learning_rate)
    return links.in_float32(optax.chain(core, rate))
