"""Any transformation, without the part of its updates along scale-invariant weights."""

from typing import Any

import jax
import optax

from optlab import links, trees


def project_scale_invariant(
    inner: optax.GradientTransformation,
    *,
    delta: float | jax.Array = 0.1,
    wd_ratio: float | jax.Array = 0.1,
    weight_decay: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-8,
    mask: Any = None,
    channel_axis: int | tuple[int, ...] | None = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """Takes out of updates what only makes scale-invariant weights longer.

    Weights in front of a normalisation only have a direction. Momentum makes them
    longer, and the longer they are the less a step turns them. Where the gradient is at
    right angles to the weights, as `links.tangent` measures it,

        q_t = inner(g_t)
        u_t = q_t - n (n . q_t) + wd_ratio weight_decay w_t,   n = w_t / ||w_t||

    for each output channel, or for the whole layer; elsewhere u_t = q_t + weight_decay
    w_t. Around `optax.scale_by_adam()`, with a rate behind it, this is AdamP, and
    around `optax.trace(momentum)` SGDP.

    Args:
      inner: Transformation of gradients. A whole optimizer, with rate and sign, may
        stand here as well if weight_decay is 0.
      delta: A layer is scale invariant if all cosines of gradients and weights are
        below this over the root of the length of a row.
      wd_ratio: Factor on the decay of scale-invariant weights.
      weight_decay: Decoupled decay, for a learning rate behind this link.
      eps: Added to the lengths of weights.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      channel_axis: Axis (or axes) of the output channels of all leaves with two axes or
        more: -1 for Flax kernels, 0 where weights are (out, in). None goes by `views`.
      views: Function to a tree of `trees.MatrixView`, or that tree: output axes are
        channels, each matrix of a stack is a layer, leaves without a view are left
        alone.

    Returns:
      A transformation that needs the parameters and has the inner one's state, float32
      or wider. Updates keep their dtype.

    Raises:
      TypeError: If inner is no transformation, or there are no parameters.
      ValueError: If a number is negative, or a leaf has no such axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> w, g = jnp.array([[4.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> tx = wrappers.project_scale_invariant(optax.trace(0.9), channel_axis=0)
      >>> state = tx.init(w)
      >>> _, state = tx.update(jnp.array([[1.0, 0.0]]), state, w)  # along w: it stays
      >>> print(tx.update(g, state, w)[0])  # the sum is (0.9, 2)
      [[0. 2.]]

    Source:
      B. Heo et al., "AdamP", 2020, arXiv:2006.08217, and the authors' code; the form as
      a wrapper is ours. Differs from the authors' code: as in `optimizers.adamp`.
    """
    who = "project_scale_invariant"
    links.require_nonnegative(who, eps=eps, delta=delta, wd_ratio=wd_ratio)
    links.require_transformation(who, inner)
    inner = optax.with_extra_args_support(inner)
    decay = links.add_decayed_weights(weight_decay, mask)

    def init(params: optax.Params) -> Any:
        return inner.init(links.widen(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        gradients, wide = links.widen(updates), links.widen(params)
        directions, state = inner.update(gradients, state, wide, **extra_args)
        directions, weights = links.tangent(
            who,
            directions,
            gradients,
            wide,
            delta=delta,
            eps=eps,
            wd_ratio=wd_ratio,
            channel_axis=channel_axis,
            views=views,
        )
        out, _ = decay.update(directions, decay.init(weights), weights)
        return jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
