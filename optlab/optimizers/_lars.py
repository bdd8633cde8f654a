"""LARS: momentum SGD whose layers all move by a share of their length."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _scale


def lars(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float | jax.Array = 0.9,
    nesterov: bool = False,
    trust_coefficient: float | jax.Array = 1e-3,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    views: Any = _scale.column_views,
) -> optax.GradientTransformationExtraArgs:
    """Gives each layer a rate of its own, from the lengths of weights and gradient.

    For large batches. With layer l a matrix, each matrix of a stack, or a vector such
    as a bias, and d the weight decay,

        r_l = trust_coefficient ||w||_l / (||g||_l + d ||w||_l)
        u_t = r_l (g_t + d w_{t-1})
        m_t = momentum m_{t-1} + u_t                 (u_t + momentum m_t if nesterov)
        w_t = w_{t-1} - eta_t m_t

    r_l is 1 where weights are zero, or gradient and decay both: biases that start at
    zero begin with a step of SGD at this large rate. Give them an optimizer of their
    own (`optax.partition`) if that is too long.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule. Large, of the
        order of 10 for large batches.
      momentum: Decay of the sum of updates, in [0, 1).
      nesterov: Whether the update is mixed in once more, as above.
      trust_coefficient: Share of its length that a layer moves by at the rate 1.
      weight_decay: Decay, inside of what is scaled.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      views: Tree of `trees.MatrixView`, or a function from the tree to it: what a
        matrix is. Leaves without a view are vectors on their last axis.

    Returns:
      A transformation that needs the parameters; the sum is float32 or wider, updates
      keep their dtype.

    Raises:
      ValueError: If momentum is outside [0, 1), another number is negative, or an
        update comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> w = {"kernel": jnp.array([[3.0], [4.0]])}  # of length 5
      >>> tx = optimizers.lars(10.0)
      >>> updates, _ = tx.update(w, tx.init(w), w)  # 10 * 0.001 * 5
      >>> f"{jnp.linalg.norm(updates['kernel']):.4f}"
      '0.0500'

    Source:
      You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017,
      arXiv:1708.03888, the local rate with weight decay. Differs from it: the rate
      comes after the momentum, which is another method only while a schedule moves.
      Differs from `optax.lars` (0.2.8), which divides by ||g + d w||, has the rate
      before the momentum, and takes a leaf for a layer, so that layers in one stack
      share a rate. UNVERIFIED: the equations are from memory of the paper.
    """
    links.require_decays("lars", momentum=momentum)
    links.require_nonnegative("lars", trust_coefficient=trust_coefficient)
    decay = links.add_decayed_weights(weight_decay, mask)

    def scaled(updates: Any, params: Any) -> Any:
        still = jax.tree.map(jnp.zeros_like, updates)
        pull, _ = decay.update(still, decay.init(params), params)
        ratios = links.trust_ratios(
            links.layer_axes(params, views, vectors=True),
            params,
            updates,
            pull,
            coefficient=trust_coefficient,
        )
        return jax.tree.map(lambda r, g, d: r * (g + d), ratios, updates, pull)

    core = optax.chain(optax.stateless(scaled), optax.trace(momentum, nesterov))
    return links.descend(core, learning_rate)
