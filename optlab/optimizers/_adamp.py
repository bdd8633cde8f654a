"""AdamP: Adam whose steps do not make scale-invariant weights longer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees


class ScaleByAdampState(NamedTuple):
    """State of `scale_by_adamp`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mu: Mean gradient, shaped like the parameters, float32 or wider.
      nu: Mean square of the gradient, alike.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adamp(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    delta: float | jax.Array = 0.1,
    wd_ratio: float | jax.Array = 0.1,
    nesterov: bool = False,
    mask: Any = None,
    channel_axis: int | tuple[int, ...] | None = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction without its radial part, and the decay that goes with it.

    Args:
      b1: As in `adamp`, and so are all others.
      b2: Decay of the mean square.
      eps: Added to the root and to the lengths of weights.
      weight_decay: Decoupled decay.
      delta: Threshold of the cosine.
      wd_ratio: Factor on the decay of scale-invariant weights.
      nesterov: Whether the gradient is mixed in once more.
      mask: Which leaves decay.
      channel_axis: Axis of the channels.
      views: Function to a tree of `trees.MatrixView`, or that tree.

    Returns:
      A transformation without learning rate and sign that needs the parameters.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a number is out of range, or a leaf has no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_adamp(weight_decay=0.5, channel_axis=0)
      >>> w, g = jnp.array([[4.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> updates, _ = tx.update(g, tx.init(w), w)
      >>> [f"{entry:.3f}" for entry in updates.ravel()]
      ['0.200', '1.000']

    Source:
      See `adamp`.
    """
    links.require_decays("scale_by_adamp", b1=b1, b2=b2)
    links.require_nonnegative("scale_by_adamp", eps=eps, delta=delta, wd_ratio=wd_ratio)
    decay = links.add_decayed_weights(weight_decay, mask)

    def init(params: optax.Params) -> ScaleByAdampState:
        wide = links.widen(params)
        zeros = optax.tree.zeros_like
        return ScaleByAdampState(jnp.zeros((), jnp.int32), zeros(wide), zeros(wide))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdampState]:
        del extra_args
        gradients, count = links.widen(updates), optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2)
        mean = optax.tree.update_moment(gradients, mu, b1, 1) if nesterov else mu
        directions = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mean, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        directions, weights = links.tangent(
            "scale_by_adamp",
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
        return out, ScaleByAdampState(jnp.asarray(count), mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def adamp(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    delta: float | jax.Array = 0.1,
    wd_ratio: float | jax.Array = 0.1,
    nesterov: bool = False,
    mask: Any = None,
    channel_axis: int | tuple[int, ...] | None = None,
    views: Any = trees.matrix_views,
) -> optax.GradientTransformationExtraArgs:
    """AdamP: AdamW that leaves the length of scale-invariant weights alone.

    Weights in front of a normalisation only have a direction. Momentum makes them
    longer, and the longer they are the less a step turns them. AdamP finds such layers
    by their gradients, which are at right angles to the weights, and takes the radial
    part q . n out of their steps.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        q_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)
        q_t, r = q_t - n (n . q_t), wd_ratio     if found by `links.tangent`, else r = 1
        w_t = w_{t-1} - eta_t (q_t + r weight_decay w_{t-1})

    With nesterov, b1 m_t + (1 - b1) g_t stands for m_t.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root and to the lengths of weights.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      delta: A layer is scale invariant if all cosines of gradients and weights are
        below this over the root of the length of a row.
      wd_ratio: Factor on the decay of scale-invariant weights.
      nesterov: Whether the gradient is mixed in once more, as above.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      channel_axis: Axis (or axes) of the output channels of all leaves with two axes or
        more: -1 for Flax kernels, 0 where weights are (out, in). None goes by `views`.
      views: Function to a tree of `trees.MatrixView`, or that tree: output axes are
        channels, each matrix of a stack is a layer, and leaves without a view
        (embeddings, heads, vectors) are stepped as by AdamW.

    Returns:
      A transformation that needs the parameters; accumulators are float32 or wider,
      updates keep their dtype.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a number is out of range, or a leaf has no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> w = jnp.array([[3.0, 4.0], [1.0, 0.0]])  # (out, in)
      >>> g = jnp.array([[4.0, -3.0], [0.0, 2.0]])
      >>> tx = optimizers.adamp(0.1, weight_decay=0.1, channel_axis=0)
      >>> updates, _ = tx.update(g, tx.init(w), w)
      >>> [f"{entry:.3f}" for entry in (w + updates).ravel()]
      ['2.885', '4.080', '0.999', '-0.100']

    Source:
      B. Heo et al., "AdamP: slowing down the slowdown for momentum optimizers on
      scale-invariant weights", 2020, arXiv:2006.08217, algorithm 2, and the authors'
      code, of which the threshold, the two attempts and wd_ratio are. Differs from the
      authors' code: it takes axis 0 for the channels and a leaf for a layer, which
      `channel_axis=0` does here too.
    """
    core = scale_by_adamp(
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        delta=delta,
        wd_ratio=wd_ratio,
        nesterov=nesterov,
        mask=mask,
        channel_axis=channel_axis,
        views=views,
    )
    rate = links.scale_by_learning_rate(learning_rate)
    return links.in_float32(optax.chain(core, rate))
