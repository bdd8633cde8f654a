"""Adafactor: Adam's divisor from the means of rows and columns alone."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees
from optlab.optimizers import _scale


class ScaleByAdafactorState(NamedTuple):
    """State of `scale_by_adafactor`; everything is float32 or wider.

    Attributes:
      count: Updates applied so far, shape (), int32.
      rows: For each leaf that is factored the mean square over its outputs: shaped like
        the leaf with 1 in place of these axes.
      columns: Alike, over the axes that a layer sums over.
      square: Mean square of every other leaf, shaped like the parameters;
        `optax.MaskedNode` in the place of factored leaves.
    """

    count: jax.Array
    rows: Any
    columns: Any
    square: Any


def scale_by_adafactor(
    *,
    decay_power: float | jax.Array = 0.8,
    eps: float | jax.Array = 1e-30,
    max_rms: float | jax.Array | None = 1.0,
    min_scale: float | jax.Array | None = 1e-3,
    min_size: int = 2,
    views: Any = _scale.column_views,
) -> optax.GradientTransformationExtraArgs:
    """Divides by a rank-one mean square, bounds the result, scales it to the weights.

    For a matrix, or each of a stack, with rows i over the fan-in and columns j,

        b_t = 1 - t^(-decay_power)
        R_i = b_t R_i + (1 - b_t) mean_j (g_ij^2 + eps)
        C_j = b_t C_j + (1 - b_t) mean_i (g_ij^2 + eps)
        u_ij = g_ij / sqrt(R_i C_j / mean_i R_i)
        u = u / max(1, RMS(u) / max_rms)
        u = max(min_scale, RMS(w)) u

    All other leaves have a mean square for each entry, and the RMS of their last axis.

    Args:
      decay_power: How fast the averages come to average all gradients, above 0.
      eps: Added to squares, in squared units of the gradient.
      max_rms: Largest root mean square of an update before it is scaled; None for no
        bound.
      min_scale: Least scale of the weights, which lets those at zero move; None for
        updates that are not scaled.
      min_size: Smallest side of a matrix that is factored.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.

    Returns:
      A transformation without learning rate and sign. Squares that float32 cannot sum
      up count as the largest that it can.

    Raises:
      ValueError: If a number is negative, or there are no parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_adafactor()
      >>> w = {"kernel": jnp.full((3, 2), 0.5)}
      >>> g = {"kernel": jnp.array([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])}
      >>> updates, state = tx.update(g, tx.init(w), w)
      >>> print(updates["kernel"].ravel())  # squares of rank one: as RMSProp
      [0.5 0.5 0.5 0.5 0.5 0.5]
      >>> state.rows[0].shape, state.columns[0].shape
      ((3, 1), (1, 2))

    Source:
      See `adafactor`.
    """
    who = "scale_by_adafactor"
    links.require_nonnegative(
        who, decay_power=decay_power, eps=eps, max_rms=max_rms, min_scale=min_scale
    )

    def init(params: optax.Params) -> ScaleByAdafactorState:
        zeros, structure = jax.tree.flatten(optax.tree.zeros_like(links.widen(params)))
        sides = tuple(_sides(params, views, min_size))
        pairs = _first_means(zeros, sides)
        known = zip(zeros, sides, strict=True)
        whole = [optax.MaskedNode() if own else zero for zero, own in known]
        # An array in place of none: Optax asks so what is not shaped like parameters.
        rows, columns = zip(*pairs, strict=True) if pairs else (jnp.zeros(()),) * 2
        count = jnp.zeros((), jnp.int32)
        return ScaleByAdafactorState(count, rows, columns, structure.unflatten(whole))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdafactorState]:
        del extra_args
        if params is None:
            raise ValueError(f"{who}: needs the parameters: update(..., params)")
        t = jnp.asarray(optax.safe_increment(state.count))
        share = t.astype(float) ** -decay_power
        leaves, structure = jax.tree.flatten(updates)
        sides = _sides(params, views, min_size)
        factors = iter(zip(*state[1:3], strict=True) if any(sides) else ())
        out, pairs, whole = [], [], []
        for g, w, v, own, layer in zip(
            links.widen(leaves),
            jax.tree.leaves(links.widen(params)),
            structure.flatten_up_to(state.square),
            sides,
            links.layer_axes(params, views, vectors=True),
            strict=True,
        ):
            square = _finite_in_sum(g * g + eps)
            if own:
                pair = [
                    links.settled(_toward(old, new, share))
                    for old, new in zip(next(factors), _means(square, own), strict=True)
                ]
                pairs.append(pair)
                u = _divided(g, pair[0], pair[1], own[0])
            else:
                v = _toward(v, square, share)
                u = g / jnp.sqrt(v)
            whole.append(v)
            out.append(_sized(u, w, layer or (), max_rms, min_scale))
        out = jax.tree.map(
            lambda u, g: u.astype(g.dtype), structure.unflatten(out), updates
        )
        rows, columns = zip(*pairs, strict=True) if pairs else state[1:3]
        square = structure.unflatten(whole)
        return out, ScaleByAdafactorState(t, rows, columns, square)

    return optax.GradientTransformationExtraArgs(init, update)


def _sides(params: Any, views: Any, min_size: int) -> list[Any]:
    """For each leaf the axes of its rows and of its columns; None if not factored."""
    known = trees.views_by_path(params, views)

    def sides(path: Any, leaf: Any) -> Any:
        view, shape = known.get(trees.path_string(path)), jnp.shape(leaf)
        pair = view and (view.reduction, view.output)
        # One row or column has nothing to share; of no entries there is no mean.
        sizes = [math.prod(shape[axis] for axis in part) for part in pair or ()]
        factored = sizes and min(sizes) >= max(min_size, 2) and math.prod(shape)
        return pair if factored else None

    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [sides(path, leaf) for path, leaf in leaves]


def _means(square: jax.Array, sides: Any) -> tuple[jax.Array, jax.Array]:
    """Means of the rows, over the outputs, and of the columns, over the fan-in."""
    rows, columns = (jnp.mean(square, axes, keepdims=True) for axes in sides[::-1])
    return links.settled(rows), links.settled(columns)


# One program: sums over devices that are started one by one may block each other.
@functools.partial(jax.jit, static_argnums=1)
def _first_means(zeros: list[jax.Array], sides: tuple[Any, ...]) -> list[Any]:
    known = zip(zeros, sides, strict=True)
    return [_means(zero, own) for zero, own in known if own]


def _toward(old: jax.Array, new: jax.Array, share: jax.Array) -> jax.Array:
    return ((1 - share) * old + share * new).astype(old.dtype)


def _divided(g: jax.Array, rows: Any, columns: Any, axes: Any) -> jax.Array:
    # Root by root: the product of both may overflow.
    root = jnp.sqrt(rows / jnp.mean(rows, axes, keepdims=True))
    return g / root / jnp.sqrt(columns)


def _sized(u: jax.Array, w: jax.Array, axes: Any, max_rms: Any, scale: Any) -> Any:
    if max_rms is not None:
        u = u / jnp.maximum(1.0, _rms(u, axes) / max_rms)
    return u if scale is None else u * jnp.maximum(scale, _rms(w, axes))


def _finite_in_sum(square: jax.Array) -> jax.Array:
    """Bounds squares so that their sum does not overflow."""
    return jnp.minimum(square, jnp.finfo(square.dtype).max / max(square.size, 1))


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Root mean square of each layer, with its axes of size 1."""
    size = math.prod(x.shape[axis] for axis in axes)
    return links.norm_over(x, axes) / math.sqrt(max(size, 1))


def adafactor(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array | None = None,
    decay_power: float | jax.Array = 0.8,
    eps: float | jax.Array = 1e-30,
    max_rms: float | jax.Array | None = 1.0,
    min_scale: float | jax.Array | None = 1e-3,
    min_size: int = 2,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    views: Any = _scale.column_views,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor: an adaptive method with hardly any state.

    The update u_t is that of `scale_by_adafactor`, or with b1 the mean of it, then

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    State of an (m, n) matrix in float32: 4 (m + n) bytes, 4 m n more with b1. All other
    leaves: 4 bytes a parameter.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule. It is the share
        of their size that weights move by: the paper's is min(0.01, 1 / sqrt(t)), which
        is `lambda count: jnp.minimum(0.01, (count + 1.0) ** -0.5)`.
      b1: Decay of the mean update, in [0, 1), without correction of bias; None keeps no
        mean.
      decay_power: How fast the averages come to average all gradients, above 0.
      eps: Added to squares, in squared units of the gradient.
      max_rms: Largest root mean square of an update; None for no bound.
      min_scale: Least scale of the weights; None for rates that are not relative.
      min_size: Smallest side of a matrix that is factored; Optax has 128.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      views: Tree of `trees.MatrixView`, or a function from the tree to it: which leaves
        are matrices, by default hidden ones, embeddings and heads.

    Returns:
      A transformation that needs the parameters; what it keeps is float32 or wider,
      updates keep their dtype.

    Raises:
      ValueError: As `scale_by_adafactor`, or if b1 is outside [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> w = {"kernel": jnp.full((3, 2), 0.5)}
      >>> tx = optimizers.adafactor(0.1)
      >>> updates, _ = tx.update(w, tx.init(w), w)
      >>> f"{updates['kernel'][0, 0]:.4f}"  # a tenth of the weight
      '-0.0500'

    Source:
      N. Shazeer, M. Stern, "Adafactor: adaptive learning rates with sublinear memory
      cost", 2018, arXiv:1804.04235, algorithms 4 to 6. Differs from `optax.adafactor`
      (0.2.8): rows and columns are those of the layer, where Optax takes the two
      largest axes of a leaf (of an attention kernel one axis of the heads, of a deep
      stack its layers); each matrix of a stack has its own bound and scale; small
      matrices are factored too; gradients whose squares overflow leave numbers; decay
      is multiplied by the rate, which comes after b1. UNVERIFIED: the equations are
      from memory of the paper.
    """
    core = scale_by_adafactor(
        decay_power=decay_power,
        eps=eps,
        max_rms=max_rms,
        min_scale=min_scale,
        min_size=min_size,
        views=views,
    )
    if b1 is not None:
        links.require_decays("adafactor", b1=b1)
        core = optax.chain(core, optax.ema(b1, debias=False))
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
