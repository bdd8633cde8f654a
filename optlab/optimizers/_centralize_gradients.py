"""Gradient centralization: no channel's gradient has a mean."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees


def centralize_gradients(
    *,
    channel_axis: int | tuple[int, ...] | None = None,
    views: Any = trees.matrix_views,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Takes from the gradient of each output channel its mean.

    The first link of a chain. With i over the weights of channel c, those that make one
    output,

        g_ci <- g_ci - mean_i g_ci

    so a step on these gradients leaves the sum of the weights of each channel as it is.

    Args:
      channel_axis: Axis (or axes) of the output channels of all leaves with two axes or
        more: -1 for Flax kernels, 0 where weights are (out, in). None goes by `views`.
      views: Function to a tree of `trees.MatrixView`, or that tree: output axes are
        channels, each matrix of a stack has its own, leaves without a view
        (embeddings, heads, vectors) are left alone.
      mask: Which leaves are centralized: tree of booleans or a function of the
        gradients; None for all.

    Returns:
      A transformation without state; means are taken in float32 or wider, updates keep
      their dtype.

    Raises:
      ValueError: If a leaf has no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> g = {"kernel": jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}  # (in, out)
      >>> tx = optimizers.centralize_gradients()
      >>> print(tx.update(g, tx.init(g))[0]["kernel"])
      [[-1.5 -1.5 -1.5]
       [ 1.5  1.5  1.5]]

    Source:
      H. Yong et al., "Gradient centralization: a new optimization technique for deep
      neural networks", 2020, arXiv:2004.01461. Differs from `optax.centralize`, which
      takes axis 0 for the channels: right where weights are (out, in), and on Flax
      kernels the mean of the wrong axis.
    """

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        leaves, structure = jax.tree.flatten(updates)
        channels = links.channel_axes(
            "centralize_gradients", updates, channel_axis, views
        )
        wide = [links.widen(leaf) for leaf in leaves]
        means = links.reduce_alike(_mean, wide, [both and both[0] for both in channels])
        return structure.unflatten(
            g if mean is None else (x - mean).astype(g.dtype)
            for g, x, mean in zip(leaves, wide, means, strict=True)
        ), state

    link = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    return link if mask is None else optax.masked(link, mask)


def _mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.mean(x, axes, keepdims=True)
