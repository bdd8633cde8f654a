"""GaLore: Adam on the gradient's coordinates in a few directions."""

from typing import Any, NamedTuple

import jax
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _subspace
from optlab.optimizers._subspace import Basis


class ScaleByGaloreState(NamedTuple):
    """State of `scale_by_galore`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      bases: For each matrix shape the bases of fan-in (k, m, r) and fan-out (k, n, r),
        None for a side that is not projected; float32 or wider.
      mu: Mean of the coordinates, for each matrix shape (k, r, n), (k, m, r) or
        (k, r, r); float32 or wider.
      nu: Mean square of the coordinates, alike.
    """

    count: jax.Array
    bases: Any
    mu: Any
    nu: Any


def scale_by_galore(
    *,
    rank: int = 128,
    every: int = 200,
    scale: float | jax.Array = 0.25,
    side: str = "short",
    basis: Basis = kernels.singular_basis,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    bias_correction: bool = True,
    views: Any = trees.matrix_views,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Projects gradients to a few directions, takes Adam's step there, and comes back.

    Every `every` updates, from the first on, the directions are found anew: the leading
    singular vectors P of the gradient. The moments are kept, in the coordinates that
    they were measured in. With the projected side on the left,

        r_t = P^T g_t
        m_t = b1 m_{t-1} + (1 - b1) r_t
        v_t = b2 v_{t-1} + (1 - b2) r_t^2
        u_t = scale c_t P (m_t / (sqrt(v_t) + eps)),  c_t = sqrt(1 - b2^t) / (1 - b1^t)

    Args:
      rank: Number r of directions, at most the smaller side of every matrix.
      every: Updates from one choice of directions to the next.
      scale: Factor on the update.
      side: Which side of a matrix (fan-in, fan-out) is projected: 'short' (the authors'
        default; of a square one the fan-in), 'long' (which Optax's GaLore projects;
        the coordinates are fewer, the basis is larger), 'in', 'out', or 'both'.
      basis: Kernel (..., m, n), rank -> (..., m, rank): `kernels.singular_basis`, or
        `kernels.range_basis`, random products that cost much less.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of the gradient.
      bias_correction: Whether c_t is applied.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      over: On a mesh, `sharding.spread(mesh, axes)`, see there; None: every device
        works on whole matrices and keeps all of the state.

    Returns:
      A transformation without learning rate and sign. A zero gradient at the start
      gives a zero update.

    Raises:
      ValueError: If side is unknown, rank or every is below 1, a leaf is no matrix or
        has fewer directions than `rank`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_galore(rank=1, scale=1.0)
      >>> g = {"kernel": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> print(updates["kernel"].round(3))  # Adam's step along the larger direction
      [[1. 0.]
       [0. 0.]]

    Source:
      See `galore`.
    """
    who = "scale_by_galore"
    _subspace.require_known(who, "side", side, _subspace.SIDES)
    _subspace.require_positive(who, rank=rank, every=every)

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        bases = _subspace.empty_bases(shapes, rank, side)
        mu, nu = (_subspace.first_moments(shapes, bases) for _ in range(2))
        return bases, mu, nu

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
        factor = scale
        if bias_correction:
            factor = factor * _subspace.correction(state.count, b1, b2)
        lifted = _subspace.out_of_bases(steps, bases)
        return [factor * u for u in lifted], (bases, mu, nu)

    return links.on_stacks(
        who,
        ScaleByGaloreState,
        init,
        update,
        views=views,
        over=over,
        complaint=_subspace.too_few_directions(rank),
    )


def galore(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    rank: int = 128,
    every: int = 200,
    scale: float | jax.Array = 0.25,
    side: str = "short",
    basis: Basis = kernels.singular_basis,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    bias_correction: bool = True,
    weight_decay: float | jax.Array = 0.0,
    decay_order: str = "after",
    mask: Any = None,
    views: Any = trees.matrix_views,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """GaLore for the matrices of a model and another optimizer for the rest.

    Adam with the memory of a few directions: the moments of an m by n matrix, m <= n,
    have r n entries and the basis m r, in place of 2 m n. The update u_t is that of
    `scale_by_galore`; embeddings, heads, norms and biases go to `rest`.

        w_t = (1 - eta_t weight_decay) (w_{t-1} - eta_t u_t)

    State in float32: 4 (m r + 2 r n) bytes a matrix, 12 r / n bytes a parameter of a
    square one. On a mesh it lies whole on every device, which sees whole matrices.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule; the authors' 0.01
        goes with scale 0.25.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      rank: Number of directions, at most the smaller side of every matrix.
      every: Updates from one choice of directions to the next.
      scale: Factor on the update.
      side: Which side is projected, see `scale_by_galore`.
      basis: Kernel that finds the directions, see `scale_by_galore`.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of the gradient.
      bias_correction: Whether the bias of the moments is corrected.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      decay_order: 'after' decays the moved weights, as above (the authors' code);
        'together' is w - eta (u + weight_decay w), as in all other optimizers here.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.
      over: As for `scale_by_galore`.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_galore`; if decay_order is unknown, or `rest` is missing
        and a leaf needs it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"up": {"kernel": jnp.ones((64, 256))}}
      >>> state = optimizers.galore(0.01, rank=4).init(params)
      >>> sum(x.size for x in jax.tree.leaves(state) if x.ndim)  # of 2 x 16384
      2304

    Source:
      Zhao et al., "GaLore", 2024, arXiv:2403.03507, and the authors' code. Differs from
      the authors' code: where a matrix has fewer directions than `rank` this raises,
      theirs takes fewer without a word. `optax.contrib.galore` projects the other side,
      corrects the bias before it adds eps, and has another order of decay.
    """
    orders = links.DECAY_ORDERS
    _subspace.require_known("galore", "decay_order", decay_order, orders)

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_galore(
            rank=rank,
            every=every,
            scale=scale,
            side=side,
            basis=basis,
            b1=b1,
            b2=b2,
            eps=eps,
            bias_correction=bias_correction,
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
