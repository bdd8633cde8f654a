"""APOLLO: gradients scaled by what Adam would do to a random projection of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _subspace

GRANULARITIES = ("channel", "tensor")


class ScaleByApolloState(NamedTuple):
    """State of `scale_by_apollo`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      key: Random key of all projections, shape ().
      mu: Mean of the projected gradient, for each matrix shape (k, r, long side) or
        (k, long side, r); float32 or wider.
      nu: Mean square of the projected gradient, alike.
      norm: Frobenius norm of the last update before the factors, (k,); 0 at first.
    """

    count: jax.Array
    key: jax.Array
    mu: Any
    nu: Any
    norm: Any


def scale_by_apollo(
    *,
    rank: int = 256,
    every: int = 200,
    scale: float | jax.Array = 1.0,
    granularity: str = "channel",
    growth: float | jax.Array = 1.01,
    key: jax.Array | None = None,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    views: Any = trees.matrix_views,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales each channel of a gradient by how Adam changes it in random coordinates.

    The short side of a matrix is projected by a normal matrix P with variance 1 / r,
    drawn anew every `every` updates and made again from the key in every step: it takes
    no memory. With the short side on the left,

        r_t = P^T g_t,   a_t = m_t / (sqrt(v_t) + eps),  m, v: Adam's averages of r
        s_j = ||a_t[:, j]|| / (||r_t[:, j]|| + 1e-8)     or one s for the whole matrix
        y_t = g_t diag(s),  shortened to `growth` times the norm of y_{t-1}
        u_t = sqrt(scale) c_t y_t,   c_t = sqrt(1 - b2^t) / (1 - b1^t)

    Args:
      rank: Number r of coordinates, at most the smaller side of every matrix.
      every: Updates from one projection to the next.
      scale: Its root is a factor on the update.
      granularity: 'channel' as above, or 'tensor': one factor for each matrix.
      growth: Largest ratio of the norms of two updates; infinity for no limit.
      key: Random key; None means `jax.random.key(0)`.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected, in units of the gradient.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      over: On a mesh, `sharding.spread(mesh, axes)`, see there; None: every device
        works on whole matrices and keeps all of the state.

    Returns:
      A transformation without learning rate and sign. A zero gradient gives a zero
      update.

    Raises:
      ValueError: If granularity is unknown, rank or every is below 1, a leaf is no
        matrix or has fewer directions than `rank`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_apollo(rank=1)
      >>> g = {"kernel": jnp.array([[3.0, 0.2], [4.0, -0.1]])}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> print((updates["kernel"] / g["kernel"]).std(axis=0))  # a factor a channel
      [0. 0.]

    Source:
      See `apollo`.
    """
    who = "scale_by_apollo"
    _subspace.require_known(who, "granularity", granularity, GRANULARITIES)
    _subspace.require_positive(who, rank=rank, every=every)

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        start = jax.random.key(0) if key is None else key
        bases = _subspace.empty_bases(shapes, rank, "short")
        mu, nu = (_subspace.first_moments(shapes, bases) for _ in range(2))
        norm = [jnp.zeros(x.shape[:1], x.dtype) for x in shapes]
        # A new key: the state must not alias the caller's.
        return jax.random.fold_in(start, 0), mu, nu, norm

    def update(
        stacks: list[jax.Array], state: Any, places: list[jax.Array]
    ) -> tuple[Any, ...]:
        now = jax.random.fold_in(state.key, state.count // every)

        def drawn(like: jax.Array | None, places: jax.Array) -> jax.Array | None:
            if like is None:
                return None
            return _subspace.normal_matrices(now, like, places) / rank**0.5

        empty = _subspace.empty_bases(stacks, rank, "short")
        bases = [
            (drawn(left, own), drawn(right, own))
            for (left, right), own in zip(empty, places, strict=True)
        ]
        low = _subspace.in_bases(stacks, bases)
        steps, mu, nu = _subspace.adam(low, state.mu, state.nu, b1, b2, eps)
        factor = jnp.sqrt(scale) * _subspace.correction(state.count, b1, b2)
        out, norms = [], []
        for x, step, r, (left, _), last in zip(
            stacks, steps, low, bases, state.norm, strict=True
        ):
            axis = -2 if left is not None else -1
            axes = (-2, -1) if granularity == "tensor" else (axis,)
            scaled = x * _subspace.length_ratio(step, r, axes)
            y, norm = kernels.limit_growth(scaled, last, growth)
            out.append(factor * y)
            norms.append(norm)
        return out, (state.key, mu, nu, norms)

    return links.on_stacks(
        who,
        ScaleByApolloState,
        init,
        update,
        views=views,
        over=over,
        complaint=_subspace.too_few_directions(rank),
    )


def apollo(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    rank: int = 256,
    every: int = 200,
    scale: float | jax.Array = 1.0,
    granularity: str = "channel",
    growth: float | jax.Array = 1.01,
    key: jax.Array | None = None,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-6,
    weight_decay: float | jax.Array = 0.0,
    decay_order: str = "after",
    mask: Any = None,
    views: Any = trees.matrix_views,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """APOLLO for the matrices of a model and another optimizer for the rest.

    SGD with a learning rate for each channel, which is Adam's as seen in a few random
    coordinates. APOLLO-Mini, with nearly the memory of SGD, is `rank=1`,
    `granularity='tensor'`, `scale=128`. The update u_t is that of `scale_by_apollo`.

        w_t = (1 - eta_t weight_decay) (w_{t-1} - eta_t u_t)

    State in float32: 4 (2 r n + 1) bytes for an m by n matrix, m <= n. On a mesh it
    lies whole on every device, which sees whole matrices.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule; the authors take
        0.01.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      rank: Number of coordinates, at most the smaller side of every matrix.
      every: Updates from one projection to the next.
      scale: Its root is a factor on the update.
      granularity: 'channel' or 'tensor', see `scale_by_apollo`.
      growth: Largest ratio of the norms of two updates.
      key: Random key; None means `jax.random.key(0)`. Give the same one on every host.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root before its bias is corrected.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      decay_order: 'after' decays the moved weights, as above (the authors' code);
        'together' is w - eta (u + weight_decay w).
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      views: Function from parameters to a tree of `trees.MatrixView` (None for the
        rest), or that tree.
      over: As for `scale_by_apollo`.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_apollo`; if decay_order is unknown, or `rest` is missing
        and a leaf needs it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"up": {"kernel": jnp.ones((64, 256))}}
      >>> state = optimizers.apollo(0.01, rank=4).init(params)
      >>> sum(x.size for x in jax.tree.leaves(state) if x.ndim)  # of 2 x 16384
      2049

    Source:
      Zhu et al., "APOLLO: SGD-like memory, AdamW-level performance", 2024,
      arXiv:2412.05270, and a copy of the authors' code. Differs from that code: random
      numbers; after an update of norm 0 the limit starts afresh, see
      `kernels.limit_growth`; channels are those of the long side at any rank (theirs:
      of the longer side of the projected gradient). UNVERIFIED: that P has variance
      1 / r, and the paper itself.
    """
    orders = links.DECAY_ORDERS
    _subspace.require_known("apollo", "decay_order", decay_order, orders)

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_apollo(
            rank=rank,
            every=every,
            scale=scale,
            granularity=granularity,
            growth=growth,
            key=key,
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
