"""Muon: momentum whose matrices are replaced by their polar factor."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees

MOMENTUM_FORMS = ("average", "sum", "bias_corrected")
CONV_SCALES = ("window", "matrix")

Kernel = Callable[[jax.Array], jax.Array]
Scale = str | Callable[[tuple[int, int]], float]

# Factor on the polar factor of a (fan_in, fan_out) matrix.
SCALES: dict[str, Callable[[tuple[int, int]], float]] = {
    "jordan": lambda mn: max(1.0, mn[1] / mn[0]) ** 0.5,
    "spectral": lambda mn: (mn[1] / mn[0]) ** 0.5,
    "moonlight": lambda mn: 0.2 * max(mn) ** 0.5,
    "none": lambda mn: 1.0,
}


class ScaleByMuonState(NamedTuple):
    """State of `scale_by_muon`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: Shaped like the parameters; float32 or wider, or `accumulator_dtype`.
    """

    count: jax.Array
    momentum: Any


def _mixed(momentum, b1, nesterov, count) -> tuple[Callable, Callable]:
    """Returns (m, g) -> next m and (next m, g) -> the direction to orthogonalise."""
    weight = 1.0 if momentum == "sum" else 1 - b1

    def accumulate(m, g):
        # In the gradient's dtype: in a narrower accumulator's b1 would be rounded.
        return b1 * m.astype(g.dtype) + weight * g

    def direction(m, g):
        if momentum == "bias_corrected":
            t = optax.safe_increment(count)
            if not nesterov:
                return m / (1 - b1**t)
            ahead = optax.safe_increment(t)
            return b1 * m / (1 - b1**ahead) + (1 - b1) * g / (1 - b1**t)
        return b1 * m + weight * g if nesterov else m

    return accumulate, direction


def scale_by_muon(
    *,
    b1: float | jax.Array = 0.95,
    nesterov: bool = True,
    momentum: str = "average",
    scale: Scale = "jordan",
    conv_scale: str = "window",
    orthogonalize: Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Accumulates momentum and orthogonalises it, matrix by matrix.

    Every leaf must be a matrix under `views`; route the others elsewhere, as `muon`
    does. Leaves of equal matrix shape are stacked and go through the kernel together.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = scale(m, n) polar(b1 m_t + (1 - b1) g_t)

    Args:
      b1: Decay of the momentum, in [0, 1).
      nesterov: Mix the gradient in once more before orthogonalising, as above;
        otherwise the polar factor of m_t is taken.
      momentum: 'average' as above (K. Jordan's code, PyTorch); 'sum', with weight 1
        on gradients (Moonlight, Levanter), which a scale-free kernel turns into the
        same update; 'bias_corrected', b1 m_t / (1 - b1^(t+1)) + (1 - b1) g_t /
        (1 - b1^t) with t from 1 (Optax).
      scale: Factor by matrix shape, see `muon`, or a function of (fan_in, fan_out).
      conv_scale: 'window' or 'matrix', see `muon`.
      orthogonalize: Kernel, (..., m, n) -> (..., m, n).
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      accumulator_dtype: Dtype of the momentum; None means float32, or float64 for
        float64 parameters.

    Returns:
      A transformation; its updates have the dtype of those that come in, no learning
      rate and no sign. A zero momentum gives a zero update.

    Raises:
      ValueError: If momentum, scale or conv_scale is unknown, if a leaf is no matrix,
        or if a matrix is sharded on a mesh with Explicit axes and the kernel is not
        wrapped.
      TypeError: If orthogonalize is no function.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_muon()
      >>> g = {"kernel": jnp.diag(jnp.array([3.0, 4.0]))}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [f"{entry:.4f}" for entry in jnp.diag(updates["kernel"])]
      ['0.7229', '1.1192']

    Source:
      See `muon`.
    """
    if momentum not in MOMENTUM_FORMS:
        raise ValueError(
            f"scale_by_muon: momentum must be one of {MOMENTUM_FORMS}, got {momentum!r}"
        )
    if not callable(scale) and scale not in SCALES:
        raise ValueError(
            f"scale_by_muon: scale must be a function or one of {sorted(SCALES)}, got"
            f" {scale!r}"
        )
    if conv_scale not in CONV_SCALES:
        raise ValueError(
            f"scale_by_muon: conv_scale must be one of {CONV_SCALES}, got"
            f" {conv_scale!r}"
        )
    if not callable(orthogonalize):
        raise TypeError(
            "scale_by_muon: orthogonalize must be a function of matrices, such as"
            " functools.partial(kernels.newton_schulz, coefficients='accurate'); got"
            f" {orthogonalize!r}"
        )
    factor = scale if callable(scale) else SCALES[scale]
    by_window = scale == "jordan" and conv_scale == "window"

    def init(params: optax.Params) -> ScaleByMuonState:
        trees.leaf_views("scale_by_muon", params, views)
        zeros = optax.tree.zeros_like(links.widen(params), dtype=accumulator_dtype)
        return ScaleByMuonState(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMuonState]:
        del params, extra_args
        accumulate, direction = _mixed(momentum, b1, nesterov, state.count)
        wide = links.widen(updates)
        sums = jax.tree.map(accumulate, state.momentum, wide)
        stored = jax.tree.map(lambda s, m: s.astype(m.dtype), sums, state.momentum)
        stacks, restore = trees.matrix_stacks(
            "scale_by_muon",
            jax.tree.map(direction, sums, wide),
            views,
            resharding=getattr(orthogonalize, "reshards", False),
        )
        polar = restore(
            [
                o * factor((o.shape[1], o.shape[2])) if o.size else o
                for o in links.on_each(orthogonalize, stacks)
            ]
        )
        if by_window:
            polar = _scaled_by_window(polar, views)
        out = jax.tree.map(lambda o, u: o.astype(u.dtype), polar, updates)
        return out, ScaleByMuonState(
            jnp.asarray(optax.safe_increment(state.count)), stored
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled_by_window(tree: Any, views: Any) -> Any:
    """Gives convolutions the factor of their window in place of their matrix's."""
    leaves, treedef = jax.tree.flatten(tree)
    found = trees.leaf_views("scale_by_muon", tree, views)
    return treedef.unflatten(
        x if ratio == 1 else ratio * x
        for x, ratio in zip(
            leaves, map(_window_over_matrix, leaves, found), strict=True
        )
    )


def _window_over_matrix(x: jax.Array, view: trees.MatrixView) -> float:
    """Returns the factor of a window over that of the matrix; 1 for what has none."""
    if len(view.reduction) != 3 or len(view.output) != 1 or not x.size:
        return 1.0
    output = view.output[0] % x.ndim
    axes = sorted(axis % x.ndim for axis in view.reduction)
    # The axis of the channels is the one beside the output: (h, w, in, out) in Flax,
    # (out, in, h, w) in PyTorch.
    height, width = axes[:2] if output > axes[-1] else axes[-2:]
    fan_in = math.prod(x.shape[axis] for axis in axes)
    matrix = SCALES["jordan"]((fan_in, x.shape[output]))
    return SCALES["jordan"]((x.shape[width], x.shape[height])) / matrix


def muon(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.95,
    nesterov: bool = True,
    momentum: str = "average",
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    cautious: bool = False,
    min_norm: float | jax.Array | None = None,
    scale: Scale = "jordan",
    conv_scale: str = "window",
    orthogonalize: Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for the matrices of a model and another optimizer for the rest.

    The matrices of hidden layers move along the polar factor of their momentum: every
    singular direction by the same amount. Embeddings, output heads, norms, biases and
    scalars go to `rest`. `trees.routing_table(params)` shows which leaf goes where.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        o_t = scale(m, n) polar(b1 m_t + (1 - b1) g_t)
        w_t = w_{t-1} - eta_t (o_t + weight_decay w_{t-1})

    `scale` is one of these factors, m = fan-in and n = fan-out of the matrix:

        ==========  ====================  ==========================================
        jordan      sqrt(max(1, n / m))   K. Jordan's code; rates near 0.02
        spectral    sqrt(n / m)           unit change of the output's RMS norm
        moonlight   0.2 sqrt(max(m, n))   update RMS 0.2: AdamW's rates carry over
        none        1                     the polar factor itself
        ==========  ====================  ==========================================

    Args:
      learning_rate: Rate eta of the matrices: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      b1: Decay of the momentum, in [0, 1).
      nesterov: Whether the gradient is mixed in once more, as above.
      momentum: Form of the momentum, see `scale_by_muon`.
      weight_decay: Decoupled decay of the matrices, multiplied by the learning rate
        but not by `scale`.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      cautious: Whether decay acts only where it agrees with the update, see
        `links.add_decayed_weights`.
      min_norm: Matrices whose gradient has at most this Frobenius norm get an update of
        zero, see `links.hold_still`; 0 holds the experts that no token has reached,
        which momentum alone would move by a full step. None moves all.
      scale: One of the names above, or a function of (fan_in, fan_out).
      conv_scale: What 'jordan' means for a convolution, a leaf with two window axes and
        one of channels for its fan-in: 'window', sqrt(max(1, height / width)) of its
        window, so 1 for most (K. Jordan's code, which takes the last two of four axes);
        'matrix', the factor of its matrix. Codes with other scales have no convolutions
        and use the matrix, as do one-dimensional convolutions.
      orthogonalize: Kernel, (..., m, n) -> (..., m, n). `functools.partial(
        kernels.newton_schulz, ...)` with compute_dtype="bfloat16" is faster, with
        coefficients="accurate" nearer to the polar factor. On a mesh, wrap it:
        `sharding.over_axis(kernels.newton_schulz, mesh, axes)`.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_muon`; if `rest` is missing and a leaf needs it.
      TypeError: As `scale_by_muon`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
      >>> tx = optimizers.muon(0.1, rest=optimizers.adamw(0.01))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [f"{entry:.4f}" for entry in jnp.diag(updates["kernel"])]
      ['-0.1108', '-0.1108']

    Source:
      K. Jordan et al., "Muon: an optimizer for hidden layers", 2024. Differs from the
      authors' code: momentum and Newton-Schulz in float32 (theirs: bfloat16); nothing
      added to the norm (theirs: 1e-7; pass a kernel with eps=1e-7).
      `moonlight`: J. Liu et al., 2025, arXiv:2502.16982. Optax's `contrib.muon` is
      `momentum='bias_corrected'`; it fails on meshes with Explicit axes and routes by
      the number of axes.
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_muon(
            b1=b1,
            nesterov=nesterov,
            momentum=momentum,
            scale=scale,
            conv_scale=conv_scale,
            orthogonalize=orthogonalize,
            views=views,
            accumulator_dtype=accumulator_dtype,
        )
        return links.descend(
            links.hold_still(core, min_norm, views),
            learning_rate,
            weight_decay=weight_decay,
            mask=mask,
            cautious=cautious,
        )

    return links.matrices_and_rest(matrices, rest, views)
