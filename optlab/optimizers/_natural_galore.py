"""Natural GaLore: GaLore on both sides, and a natural gradient of a short history."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _subspace
from optlab.optimizers._subspace import Basis


class ScaleByNaturalGaloreState(NamedTuple):
    """State of `scale_by_natural_galore`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      bases: For each matrix shape the bases of fan-in (k, m, r) and fan-out (k, n, r).
      window: Latest coordinates, one row each, (k, history, r r); float32 or wider.
      mu: Mean of the natural coordinates, (k, r, r); float32 or wider.
      nu: Mean square of the natural coordinates, (k, r, r); float32 or wider.
    """

    count: jax.Array
    bases: Any
    window: Any
    mu: Any
    nu: Any


def scale_by_natural_galore(
    *,
    rank: int = 128,
    every: int = 200,
    scale: float | jax.Array = 0.25,
    history: int = 20,
    damping: float | jax.Array = 1e-3,
    basis: Basis = kernels.singular_basis,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    views: Any = trees.matrix_views,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Takes Adam's step on a natural gradient among few coordinates of both sides.

    Bases P of the fan-in and Q of the fan-out are found every `every` updates. The
    Fisher matrix of the coordinates is the sum over the last `history` of them, the
    present one included; moments and history stay when the bases change.

        r_t = P^T g_t Q
        f_t = (damping I + sum_i r_i r_i^T)^-1 r_t
        u_t = scale c_t P (m_t / (sqrt(v_t) + eps)) Q^T

    with m_t and v_t the averages of f_t and f_t^2, and c_t the correction of their bias
    as in `scale_by_galore`.

    Args:
      rank: Number r of directions on each side, at most the smaller side of every
        matrix.
      every: Updates from one choice of directions to the next.
      scale: Factor on the update.
      history: Number of latest gradients that make the Fisher matrix.
      damping: Added to the Fisher matrix, above 0, in units of a squared gradient.
      basis: Kernel (..., m, n), rank -> (..., m, rank), see `scale_by_galore`.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of f_t.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      over: On a mesh, `sharding.spread(mesh, axes)`, see there; None: every device
        works on whole matrices and keeps all of the state.

    Returns:
      A transformation without learning rate and sign. A zero gradient at the start
      gives a zero update.

    Raises:
      ValueError: If rank, every or history is below 1, damping not above 0, a leaf is
        no matrix or has fewer directions than `rank`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_natural_galore(rank=1, scale=1.0)
      >>> g = {"kernel": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> [f"{entry:.4f}" for entry in 10 * state.mu[0].ravel()]  # 3 / (0.001 + 9)
      ['0.3333']

    Source:
      See `natural_galore`.
    """
    who = "scale_by_natural_galore"
    _subspace.require_positive(who, rank=rank, every=every, history=history)
    if isinstance(damping, float | int) and not damping > 0:
        raise ValueError(f"{who}: damping must be above 0, got {damping}")

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        bases = _subspace.empty_bases(shapes, rank, "both")
        mu, nu = (_subspace.first_moments(shapes, bases) for _ in range(2))
        window = [
            jnp.zeros((m.shape[0], history, m.shape[1] * m.shape[2]), m.dtype)
            for m in mu
        ]
        return bases, window, mu, nu

    def update(
        stacks: list[jax.Array], state: Any, places: list[jax.Array]
    ) -> tuple[Any, ...]:
        del places
        bases = jax.lax.cond(
            state.count % every == 0,
            lambda: _subspace.new_bases(stacks, state.bases, basis),
            lambda: state.bases,
        )
        row = state.count % history
        window, natural = [], []
        for low, old in zip(
            _subspace.in_bases(stacks, bases), state.window, strict=True
        ):
            flat = low.reshape(old.shape[::2]).astype(old.dtype)
            window.append(jax.lax.dynamic_update_index_in_dim(old, flat, row, 1))
            natural.append(natural_row(window[-1], row, damping).reshape(low.shape))
        steps, mu, nu = _subspace.adam(natural, state.mu, state.nu, b1, b2, eps)
        factor = scale * _subspace.correction(state.count, b1, b2)
        lifted = _subspace.out_of_bases(steps, bases)
        return [factor * u for u in lifted], (bases, window, mu, nu)

    return links.on_stacks(
        who,
        ScaleByNaturalGaloreState,
        init,
        update,
        views=views,
        over=over,
        complaint=_subspace.too_few_directions(rank),
    )


def natural_row(
    window: jax.Array, row: jax.Array, damping: float | jax.Array
) -> jax.Array:
    """Multiplies one row by (damping I + sum_i r_i r_i^T)^-1, for rows (k, s, d)."""
    if not window.size:
        return window[:, 0]
    size = jnp.max(jnp.abs(window), axis=-1, keepdims=True)
    size = jnp.where(size == 0, 1.0, size)  # squares of 1e30 would overflow
    length = jnp.sqrt(jnp.sum((window / size) ** 2, axis=-1, keepdims=True))
    unit = window / size / jnp.where(length == 0, 1.0, length)
    s = window.shape[1]
    gram = jnp.einsum("ksd,ktd->kst", unit, unit, precision="highest")
    norms = (size * length)[..., 0]
    # A row of the window is a combination of rows: nothing large cancels.
    chosen = jnp.broadcast_to(jnp.arange(s) == row, norms.shape).astype(norms.dtype)
    weights = kernels.window_weights(gram, norms, chosen, damping / s) / s
    return jnp.einsum("ks,ksd->kd", weights, unit, precision="highest")


def natural_galore(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    rank: int = 128,
    every: int = 200,
    scale: float | jax.Array = 0.25,
    history: int = 20,
    damping: float | jax.Array = 1e-3,
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
    """Natural GaLore for the matrices of a model and another optimizer for the rest.

    GaLore whose gradients, projected on both sides, are multiplied by the inverse of a
    Fisher matrix of the last few. The update u_t is that of `scale_by_natural_galore`.

        w_t = (1 - eta_t weight_decay) (w_{t-1} - eta_t u_t)

    State in float32: 4 (r (m + n) + (2 + history) r^2) bytes a matrix: the history of
    20 is ten times the moments, not free of memory as is sometimes said.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      rank: Number of directions on each side.
      every: Updates from one choice of directions to the next.
      scale: Factor on the update.
      history: Number of latest gradients that make the Fisher matrix.
      damping: Added to the Fisher matrix, above 0, in units of a squared gradient.
      basis: Kernel that finds the directions, see `scale_by_galore`.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      decay_order: 'after' decays the moved weights, as above (the authors' code);
        'together' is w - eta (u + weight_decay w).
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.
      over: As for `scale_by_natural_galore`.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_natural_galore`; if decay_order is unknown, or `rest` is
        missing and a leaf needs it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"up": {"kernel": jnp.ones((64, 256))}}
      >>> state = optimizers.natural_galore(0.01, rank=4).init(params)
      >>> sum(x.size for x in jax.tree.leaves(state) if x.ndim)  # of 2 x 16384
      1632

    Source:
      Das, "Natural GaLore", 2024, arXiv:2410.16029, and the authors' code: the sum is
      not divided by the history, and includes the present gradient. Differs from the
      authors' code: a matrix of products with a Cholesky factor in place of a
      difference of two terms of size g / damping; bases are singular vectors of the
      gradient, which its iteration converges to for a matrix; leaves with more than two
      axes are read as matrices (theirs: one basis for each axis).
    """
    orders = links.DECAY_ORDERS
    _subspace.require_known("natural_galore", "decay_order", decay_order, orders)

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_natural_galore(
            rank=rank,
            every=every,
            scale=scale,
            history=history,
            damping=damping,
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
