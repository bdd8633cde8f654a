"""Dion2: Muon on the largest rows or columns of the momentum, which then fade."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _muon


class ScaleByDion2State(NamedTuple):
    """State of `scale_by_dion2`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: Sum of gradients whose chosen slices fade, shaped like the parameters;
        float32 or wider, or `accumulator_dtype`.
    """

    count: jax.Array
    momentum: Any


def scale_by_dion2(
    *,
    b1: float | jax.Array = 0.95,
    fraction: float = 0.25,
    orthogonalize: _muon.Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the largest slices of the momentum and lets only these fade.

    S are the ceil(fraction s) slices of m_t with the largest sum of absolute values,
    along the shorter side of the matrix (columns, the output neurons, of a square one):

        m_t = m_{t-1} + g_t
        u_S = sqrt(n / m) polar(m_t on S),   u = 0 elsewhere
        m_t on S <- b1 m_t on S

    What is not chosen waits at full weight: no gradient is lost. The factor is that of
    the whole shape, fan-in m by fan-out n. With fraction 1 this is `scale_by_muon` with
    `momentum='sum'`, `nesterov=False` and `scale='spectral'`.

    Args:
      b1: Factor on the chosen slices after their use, in [0, 1).
      fraction: Part of the slices, above 0 and at most 1.
      orthogonalize: Kernel for the part, (..., m, n) -> (..., m, n). On a mesh wrap it
        in `sharding.over_axis`: whole matrices are sent, and sliced where they arrive.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation without learning rate and sign; updates keep the dtype of those
      that come in.

    Raises:
      ValueError: If fraction is out of range or a leaf is no matrix.
      TypeError: If orthogonalize is no function.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_dion2(fraction=0.5)
      >>> g = {"kernel": jnp.diag(jnp.array([3.0, 4.0]))}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> print(state.momentum["kernel"])
      [[3.  0. ]
       [0.  3.8]]

    Source:
      See `dion2`.
    """
    if not callable(orthogonalize):
        raise TypeError(
            "scale_by_dion2: orthogonalize must be a function of matrices, such as"
            f" kernels.newton_schulz; got {orthogonalize!r}"
        )
    slices = functools.partial(kernels.largest_slices, fraction=fraction)
    # Slices are chosen where whole matrices are.
    inside = getattr(orthogonalize, "around", lambda wrap: wrap(orthogonalize))
    kernel = inside(slices)

    def init(params: optax.Params) -> ScaleByDion2State:
        trees.leaf_views("scale_by_dion2", params, views)
        zeros = optax.tree.zeros_like(links.widen(params), dtype=accumulator_dtype)
        return ScaleByDion2State(jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByDion2State]:
        del params, extra_args
        sums = jax.tree.map(
            lambda m, g: m.astype(g.dtype) + g, state.momentum, links.widen(updates)
        )
        stacks, restore = trees.matrix_stacks(
            "scale_by_dion2",
            sums,
            views,
            resharding=getattr(orthogonalize, "reshards", False),
        )
        polar = links.on_each(kernel, stacks)
        direction = restore([_scaled(o) for o in polar])
        # Factors are sent back, not faded matrices: the momentum stays where it lies.
        fade = restore([_fade(o, b1) for o in polar])
        faded = jax.tree.map(jnp.multiply, fade, sums)
        stored = jax.tree.map(lambda s, m: s.astype(m.dtype), faded, state.momentum)
        out = jax.tree.map(lambda o, u: o.astype(u.dtype), direction, updates)
        return out, ScaleByDion2State(
            jnp.asarray(optax.safe_increment(state.count)), stored
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(o: jax.Array) -> jax.Array:
    return o * (o.shape[2] / o.shape[1]) ** 0.5 if o.size else o


def _fade(o: jax.Array, b1: float | jax.Array) -> jax.Array:
    """Returns b1 on the slices that have a direction and 1 elsewhere."""
    along = -2 if o.shape[-1] <= o.shape[-2] else -1
    chosen = jnp.any(o != 0, axis=along, keepdims=True)
    return jnp.where(chosen, jnp.asarray(b1, o.dtype), jnp.ones_like(o))


def dion2(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.95,
    fraction: float = 0.25,
    weight_decay: float | jax.Array = 0.01,
    mask: Any = None,
    cautious: bool = False,
    min_norm: float | jax.Array | None = None,
    orthogonalize: _muon.Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Dion2 for the matrices of a model and another optimizer for the rest.

    Muon at a part of its cost: each step orthogonalises a quarter of the rows or
    columns, those where most has piled up. See `scale_by_dion2`.

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})     all of w decays

    Args:
      learning_rate: Rate eta of the matrices: a number, a scalar array or a schedule;
        the authors' default is 0.01.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      b1: Factor on chosen slices after their use, in [0, 1).
      fraction: Part of the slices, above 0 and at most 1.
      weight_decay: Decoupled decay of the matrices, multiplied by the learning rate.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      cautious: Whether decay acts only where it agrees with the update, see
        `links.add_decayed_weights`.
      min_norm: As in `muon`: 0 holds matrices with a gradient of zero.
      orthogonalize: Kernel for the part, as in `scale_by_dion2`.
      views: As in `muon`.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_dion2`; if `rest` is missing and a leaf needs it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.diag(jnp.array([3.0, 4.0])), "bias": jnp.ones(2)}
      >>> tx = optimizers.dion2(0.1, fraction=0.5, rest=optimizers.adamw(0.01))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [f"{entry:.4f}" for entry in jnp.diag(updates["kernel"])]
      ['-0.0030', '-0.0736']

    Source:
      K. Ahn, N. Amsel, J. Langford, "Dion2: a simple method to shrink matrix in
      Muon", 2025, arXiv:2512.16928, and the authors' code. Differs from
      the authors' code: Jordan's five steps (theirs: Polar Express; pass
      `functools.partial(kernels.newton_schulz, coefficients='polar_express')`), in
      float32 (theirs: bfloat16); on a mesh slices are chosen from whole matrices
      (theirs: within each shard, along the sharded axis).
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_dion2(
            b1=b1,
            fraction=fraction,
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
