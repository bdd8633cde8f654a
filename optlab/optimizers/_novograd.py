"""NovoGrad: momentum of gradients that are normalised layer by layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _scale


class ScaleByNovogradState(NamedTuple):
    """State of `scale_by_novograd`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      length: For each leaf the root mean square norm of its layers: shaped like the
        leaf with 1 in place of a layer's own axes; float32 or wider.
    """

    count: jax.Array
    length: Any


def scale_by_novograd(
    *,
    b2: float | jax.Array = 0.98,
    eps: float | jax.Array = 1e-8,
    views: Any = _scale.column_views,
) -> optax.GradientTransformationExtraArgs:
    """Divides the gradient of each layer by the running length of such gradients.

        v_t = b2 v_{t-1} + (1 - b2) ||g_t||^2,   v_1 = ||g_1||^2
        u_t = g_t / (sqrt(v_t) + eps)

    Args:
      b2: Decay of the mean squared norm, in [0, 1).
      eps: Added to the root, in units of the gradient.
      views: Tree of `trees.MatrixView`, or a function from the tree to it: each matrix
        of a stack is a layer; leaves without a view are vectors on their last axis.

    Returns:
      A transformation without learning rate and sign. It keeps sqrt(v), so that squares
      do not overflow.

    Raises:
      ValueError: If the decay is outside [0, 1) or eps is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_novograd()
      >>> g = {"kernel": jnp.array([[3.0], [4.0]])}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [f"{entry:.2f}" for entry in updates["kernel"].ravel()]
      ['0.60', '0.80']

    Source:
      See `novograd`.
    """
    who = "scale_by_novograd"
    links.require_decays(who, b2=b2)
    links.require_nonnegative(who, eps=eps)

    def lengths(tree: Any) -> list[jax.Array]:
        axes = links.layer_axes(tree, views, vectors=True)
        pairs = zip(jax.tree.leaves(links.widen(tree)), axes, strict=True)
        return [links.settled(links.norm_over(x, own or ())) for x, own in pairs]

    # One program: sums over devices that are started one by one may block each other.
    first_lengths = jax.jit(lengths)

    def init(params: optax.Params) -> ScaleByNovogradState:
        zeros = tuple(first_lengths(jax.tree.map(jnp.zeros_like, links.widen(params))))
        # An array in place of none: Optax asks so what is not shaped like parameters.
        return ScaleByNovogradState(jnp.zeros((), jnp.int32), zeros or jnp.zeros(()))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByNovogradState]:
        del params, extra_args
        leaves, structure = jax.tree.flatten(updates)
        if not leaves:
            return updates, state
        keep = jnp.where(state.count == 0, 0.0, b2)
        out, means = [], []
        for g, old, new in zip(leaves, state.length, lengths(updates), strict=True):
            mean = jnp.hypot(jnp.sqrt(keep) * old, jnp.sqrt(1 - keep) * new)
            means.append(links.settled(mean.astype(old.dtype)))
            out.append((links.widen(g) / (means[-1] + eps)).astype(g.dtype))
        count = jnp.asarray(optax.safe_increment(state.count))
        return structure.unflatten(out), ScaleByNovogradState(count, tuple(means))

    return optax.GradientTransformationExtraArgs(init, update)


def novograd(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.98,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    views: Any = _scale.column_views,
) -> optax.GradientTransformationExtraArgs:
    """NovoGrad: one second moment for each layer, and decay inside the momentum.

    With u_t of `scale_by_novograd`, m_0 = 0,

        m_t = b1 m_{t-1} + u_t + weight_decay w_{t-1}
        w_t = w_{t-1} - eta_t m_t

    State in float32: 4 bytes a parameter, and 4 a layer.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule. The momentum is a
        sum: in the long run a layer moves by up to 1 / (1 - b1) rates.
      b1: Decay of the momentum, in [0, 1).
      b2: Decay of the mean squared norm, in [0, 1).
      eps: Added to the root, in units of the gradient.
      weight_decay: Decay, added to the normalised gradient.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      views: As in `scale_by_novograd`: what a layer is.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If a decay is outside [0, 1), eps is negative, or an update comes
        without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> w = {"kernel": jnp.array([[3.0], [4.0]])}
      >>> tx = optimizers.novograd(0.1)
      >>> updates, _ = tx.update(w, tx.init(w), w)
      >>> [f"{entry:.3f}" for entry in updates["kernel"].ravel()]
      ['-0.060', '-0.080']

    Source:
      Ginsburg et al., "Stochastic gradient methods with layer-wise adaptive moments for
      training of deep networks", 2019, arXiv:1905.11286, algorithm 1, and NVIDIA's
      code in NeMo, whose are the defaults and the place of eps. Differs from
      `optax.novograd`, which has 0.9 and 0.25, and takes a leaf for a layer, so that
      layers in one stack share a moment.
    """
    links.require_decays("novograd", b1=b1)
    core = optax.chain(
        scale_by_novograd(b2=b2, eps=eps, views=views),
        links.add_decayed_weights(weight_decay, mask),
        optax.trace(b1),
    )
    return links.descend(core, learning_rate)
