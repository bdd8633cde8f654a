"""Updates without their part along the weights, where only a direction matters."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optlab.links import _arrays, _channels, _ranges

# Layers of fewer entries go together: to start a loop costs more than to copy them.
SMALL = 2**16


def tangent(
    who: str,
    directions: Any,
    gradients: Any,
    params: Any,
    *,
    delta: float | jax.Array,
    eps: float | jax.Array,
    wd_ratio: float | jax.Array,
    channel_axis: int | tuple[int, ...] | None,
    views: Any,
) -> tuple[Any, Any]:
    """Takes the radial part out of updates of weights whose size has no effect.

    In front of a normalisation the loss does not depend on the length of the weights w
    of a channel, so its gradient g is at right angles to them. A momentum is not, and
    each step makes the weights longer and later steps relatively shorter. A layer that
    shows such a gradient has, with rows over its channels c,

        q_c = q_c - n_c <n_c, q_c>,   n_c = w_c / (||w_c|| + eps)
        if max_c |cos(g_c, w_c)| < delta / sqrt(entries of a row)

    or, if it does not, the same with the whole layer as one row; else q as it came. All
    channels are projected or none.

    Args:
      who: Name of the method, for errors.
      directions: Tree of q, any linear image of the gradients, sign or rate included.
      gradients: Tree of g, as they came from the loss.
      params: Tree of w.
      delta: Threshold of the cosine, as above.
      eps: Least length that divides.
      wd_ratio: Factor on weights that are scale invariant.
      channel_axis: Axis (or axes) of the channels that a layer puts out, the same for
        every leaf of two axes or more, each of which is one layer; None goes by views.
      views: Tree of `trees.MatrixView` or a function to it: output axes are channels,
        and each matrix of a stack is a layer; leaves without a view are left alone.

    Returns:
      The directions, and the weights to decay: wd_ratio w in layers that were
      projected, else w. Both in float32 or wider.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a leaf has no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links, trees
      >>> g, w = jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 0.0]])
      >>> rule = dict(delta=0.1, eps=0.0, wd_ratio=0.5, views=None)
      >>> print(*links.tangent("me", g + w, g, w, channel_axis=0, **rule))
      [[0. 1.]] [[1. 0.]]
      >>> print(*links.tangent("me", g + w, g, w, channel_axis=-1, **rule))
      [[0. 1.]] [[1. 0.]]

    Source:
      B. Heo et al., "AdamP", 2020, arXiv:2006.08217, section 3, and the authors' code.
    """
    _ranges.require_params(who, params)
    leaves, structure = jax.tree.flatten(_arrays.widen(params))
    columns = [
        structure.flatten_up_to(_arrays.widen(tree)) for tree in (directions, gradients)
    ]
    rows = list(zip(*columns, leaves, strict=True))
    groups: dict[Any, list[int]] = {}
    for index, view in enumerate(
        _channels.channel_axes(who, params, channel_axis, views)
    ):
        if view is not None and leaves[index].size:
            kinds = tuple(jax.typeof(x) for x in rows[index])
            groups.setdefault((view, kinds), []).append(index)
    out, eased = list(columns[0]), list(leaves)
    for ((reduction, output), kinds), members in groups.items():
        q, g, w = (list(x) for x in zip(*(rows[i] for i in members), strict=True))
        together = kinds[0].size < SMALL
        if together:
            q, g, w = ([jnp.stack(x)] for x in (q, g, w))
        # The axes count from the end: leading ones do not shift them.
        q, fired = _projected(q, g, w, reduction, output, delta, eps)
        w = [jnp.where(yes, wd_ratio, 1.0) * x for x, yes in zip(w, fired, strict=True)]
        if together:
            q, w = q[0], w[0]
        for place, index in enumerate(members):
            out[index], eased[index] = q[place], w[place]
    return structure.unflatten(out), structure.unflatten(eased)


def _projected(
    directions: list[jax.Array],
    gradients: list[jax.Array],
    weights: list[jax.Array],
    reduction: tuple[int, ...],
    output: tuple[int, ...],
    delta: Any,
    eps: Any,
) -> tuple[list[jax.Array], jax.Array]:
    """Returns the directions, and which layers were projected, with axes of size 1.

    What is asked of a whole layer follows from the sums over its channels, so that the
    second attempt reads nothing again. Every sum is taken of all layers before the next
    begins: on a mesh all of them travel together.
    """

    def summed(left: Any, right: Any) -> jax.Array:
        pairs = zip(left, right, strict=True)
        return jnp.stack([jnp.sum(a * b, reduction, keepdims=True) for a, b in pairs])

    w = weights[0]
    least = jnp.finfo(w.dtype).tiny + eps
    row = math.prod(w.shape[axis] for axis in reduction)
    layer = row * math.prod(w.shape[axis] for axis in output)
    lengths = jnp.stack(
        [
            jnp.stack([_arrays.norm_over(x, reduction) for x in arrays])
            for arrays in (gradients, weights)
        ]
    )
    whole = _arrays.norm_over(lengths, output)
    # Each is divided by its length first: a product of the lengths may overflow.
    held, whole_held = jnp.maximum(lengths, least), jnp.maximum(whole, least)
    divisor, whole_divisor = lengths[1] + least, whole[1] + least
    cosine = summed(
        map(jnp.divide, gradients, held[0]), map(jnp.divide, weights, held[1])
    )
    radial = summed(map(jnp.divide, weights, divisor), directions)
    part = held / whole_held
    sums = [cosine * part[0] * part[1], radial * (divisor / whole_divisor)]
    whole_cosine, whole_radial = jnp.sum(jnp.stack(sums), output, keepdims=True)
    largest = jnp.max(jnp.abs(cosine), output, keepdims=True)
    by_channel = largest < delta / math.sqrt(row)
    by_layer = jnp.abs(whole_cosine) < delta / math.sqrt(layer)
    along = jnp.where(by_layer, whole_radial / whole_divisor, 0.0)
    along = jnp.where(by_channel, radial / divisor, along)
    steps = zip(directions, along, weights, strict=True)
    return [q - a * w for q, a, w in steps], by_channel | by_layer
