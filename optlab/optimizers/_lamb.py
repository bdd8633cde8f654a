"""LAMB: AdamW whose layers all move by the same share of their length."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _scale


def lamb(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    weight_decay: float | jax.Array = 0.01,
    mask: Any = None,
    views: Any = _scale.column_views,
) -> optax.GradientTransformationExtraArgs:
    """Scales AdamW's update of each layer to the length of its weights.

    For large batches. With layer l a matrix, or each matrix of a stack,

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps) + weight_decay w_{t-1}
        w_t = w_{t-1} - eta_t ||w_{t-1}||_l / ||u_t||_l u_t

    The ratio is 1 where weights or update are zero, and for leaves without a view.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule. It is the share
        of its length that a layer moves by.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      weight_decay: Decay, inside of what is scaled.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      views: Tree of `trees.MatrixView`, or a function from the tree to it: what a layer
        is. Leaves without a view (biases, norms) are stepped as by AdamW.

    Returns:
      A transformation that needs the parameters; accumulators are float32 or wider,
      updates keep their dtype.

    Raises:
      ValueError: If a decay is outside [0, 1), eps is negative, or an update comes
        without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> w = {"kernel": jnp.array([[3.0], [4.0]])}  # of length 5
      >>> tx = optimizers.lamb(0.1, weight_decay=0.0)
      >>> updates, _ = tx.update(w, tx.init(w), w)
      >>> f"{jnp.linalg.norm(updates['kernel']):.4f}"
      '0.5000'

    Source:
      You et al., "Large batch optimization for deep learning: training BERT in 76
      minutes", 2019, arXiv:1904.00962, algorithm 2 with phi(z) = z; that biases and
      norms have no ratio is the authors' code for BERT. The averages are Optax's
      `scale_by_adam`. Differs from `optax.lamb`: it takes a leaf for a layer, so that
      layers in one stack share a ratio, and biases have one. UNVERIFIED: the equations
      are from memory of the paper.
    """
    links.require_decays("lamb", b1=b1, b2=b2)
    links.require_nonnegative("lamb", eps=eps)
    adam = optax.scale_by_adam(b1, b2, eps)
    decay = links.add_decayed_weights(weight_decay, mask)

    def scaled(updates: Any, params: Any) -> Any:
        axes = links.layer_axes(params, views)
        ratios = links.trust_ratios(axes, params, updates)
        return jax.tree.map(jnp.multiply, updates, ratios)

    return links.descend(
        optax.chain(adam, decay, optax.stateless(scaled)), learning_rate
    )
