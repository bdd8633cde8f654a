"""Fira: GaLore, and what it leaves out of a gradient at the size that Adam gives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _subspace
from optlab.optimizers._subspace import Basis

RESIDUALS = ("scaled", "exact")


class ScaleByFiraState(NamedTuple):
    """State of `scale_by_fira`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      bases: Bases as in `ScaleByGaloreState`, of one side of each matrix.
      mu: Mean of the coordinates, as in `ScaleByGaloreState`.
      nu: Mean square of the coordinates, alike.
      norm: Frobenius norm of the last residual step, (k,); 0 at first.
    """

    count: jax.Array
    bases: Any
    mu: Any
    nu: Any
    norm: Any


def scale_by_fira(
    *,
    rank: int = 128,
    every: int = 200,
    scale: float | jax.Array = 1.0,
    residual: str = "scaled",
    growth: float | jax.Array = 1.01,
    side: str = "short",
    basis: Basis = kernels.singular_basis,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    views: Any = trees.matrix_views,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds to GaLore's step the rest of the gradient, at the size Adam gives.

    With directions P, found as in `scale_by_galore`, on the left of a wide matrix,

        r_t = P^T g_t,   a_t = m_t / (sqrt(v_t) + eps),  m, v: Adam's averages of r
        s_j = ||a_t[:, j]|| / (||r_t[:, j]|| + 1e-8)
        y_t = (g_t - scale P r_t) diag(s),  shortened to `growth` ||y_{t-1}||
        u_t = c_t (scale P a_t + y_t),  c_t = sqrt(1 - b2^t) / (1 - b1^t)

    Args:
      rank: Number r of directions, at most the smaller side of every matrix.
      every: Updates from one choice of directions to the next.
      scale: Factor on the step inside the directions.
      residual: 'scaled' subtracts scale P r_t, as above (the authors' code); 'exact'
        subtracts P r_t, so that nothing inside the directions is left (the paper).
      growth: Largest ratio of the norms of two residual steps; infinity for no limit.
      side: Side that is projected, see `scale_by_galore`; not 'both'.
      basis: Kernel that finds the directions, see `scale_by_galore`.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of the gradient.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      over: On a mesh, `sharding.spread(mesh, axes)`, see there; None: every device
        works on whole matrices and keeps all of the state.

    Returns:
      A transformation without learning rate and sign. A zero gradient at the start
      gives a zero update.

    Raises:
      ValueError: If side or residual is unknown, rank or every is below 1, a leaf is no
        matrix or has fewer directions than `rank`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_fira(rank=1)
      >>> g = {"kernel": jnp.array([[4.0, 0.0], [2.0, 1.0]])}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> int(jnp.linalg.matrix_rank(updates["kernel"]))  # of GaLore's step it is 1
      2

    Source:
      See `fira`.
    """
    who = "scale_by_fira"
    _subspace.require_known(who, "side", side, _subspace.SIDES[:-1])
    _subspace.require_known(who, "residual", residual, RESIDUALS)
    _subspace.require_positive(who, rank=rank, every=every)

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        bases = _subspace.empty_bases(shapes, rank, side)
        mu, nu = (_subspace.first_moments(shapes, bases) for _ in range(2))
        return bases, mu, nu, [jnp.zeros(x.shape[:1], x.dtype) for x in shapes]

    def update(
        stacks: list[jax.Array], state: Any, places: list[jax.Array]
    ) -> tuple[Any, ...]:
        del places
        bases = jax.lax.cond(
            state.count % every == 0,
            lambda: _subspace.new_bases(stacks, state.bases, basis),
            lambda: state.bases,
        )
        low = _subspace.in_bases(stacks, bases)
        steps, mu, nu = _subspace.adam(low, state.mu, state.nu, b1, b2, eps)
        factor = _subspace.correction(state.count, b1, b2)
        out, norms = [], []
        for x, r, step, pair, last in zip(
            stacks, low, steps, bases, state.norm, strict=True
        ):
            inside = kernels.lift(r, *pair)
            left = x - (scale * inside if residual == "scaled" else inside)
            axis = -1 if pair[0] is None else -2
            left = left * _subspace.length_ratio(step, r, (axis,))
            left, norm = kernels.limit_growth(left, last, growth)
            out.append(factor * (scale * kernels.lift(step, *pair) + left))
            norms.append(norm)
        return out, (bases, mu, nu, norms)

    return links.on_stacks(
        who,
        ScaleByFiraState,
        init,
        update,
        views=views,
        over=over,
        complaint=_subspace.too_few_directions(rank),
    )


def fira(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    rank: int = 128,
    every: int = 200,
    scale: float | jax.Array = 1.0,
    residual: str = "scaled",
    growth: float | jax.Array = 1.01,
    side: str = "short",
    basis: Basis = kernels.singular_basis,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    weight_decay: float | jax.Array = 0.0,
    decay_order: str = "after",
    mask: Any = None,
    views: Any = trees.matrix_views,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Fira for the matrices of a model and another optimizer for the rest.

    The memory of GaLore, with steps in all directions. The update u_t is that of
    `scale_by_fira`; embeddings, heads, norms and biases go to `rest`.

        w_t = (1 - eta_t weight_decay) (w_{t-1} - eta_t u_t)

    State in float32: 4 (m r + 2 r n + 1) bytes for an m by n matrix, m <= n. On a mesh
    it lies whole on every device, which sees whole matrices.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      rank: Number of directions, at most the smaller side of every matrix.
      every: Updates from one choice of directions to the next.
      scale: Factor on the step inside the directions.
      residual: 'scaled' (the authors' code) or 'exact', see `scale_by_fira`.
      growth: Largest ratio of the norms of two residual steps.
      side: Side that is projected, see `scale_by_galore`; not 'both'.
      basis: Kernel that finds the directions.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      decay_order: 'after' decays the moved weights, as above (the authors' code);
        'together' is w - eta (u + weight_decay w).
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.
      over: As for `scale_by_fira`.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_fira`; if decay_order is unknown, or `rest` is missing
        and a leaf needs it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"up": {"kernel": jnp.ones((64, 256))}}
      >>> state = optimizers.fira(0.01, rank=4).init(params)
      >>> sum(x.size for x in jax.tree.leaves(state) if x.ndim)  # of 2 x 16384
      2305

    Source:
      Chen et al., "Fira", 2024, arXiv:2410.01623, and the authors' code. Differs from
      the authors' code: after a residual of norm 0 the limit starts afresh, see
      `kernels.limit_growth`; a rank that is too high raises; s_j is taken over the
      coordinates at any rank (theirs: over the shorter side of r). UNVERIFIED: that the
      paper means the exact residual.
    """
    orders = links.DECAY_ORDERS
    _subspace.require_known("fira", "decay_order", decay_order, orders)

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_fira(
            rank=rank,
            every=every,
            scale=scale,
            residual=residual,
            growth=growth,
            side=side,
            basis=basis,
            b1=b1,
            b2=b2,
            eps=eps,
            views=views,
            over=over,
        )
        return links.descend(
            core,
            learning_rate,
            weight_decay=weight_decay,
            mask=mask,
            decay_order=decay_order,
        )

    return links.matrices_and_rest(matrices, rest, views)
