"""Shampoo: gradients between inverse roots of their own second moments."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _statistics
from optlab.optimizers._statistics import Factors

SQUARED = ("adagrad", "rmsprop", "adam")  # grafts with squares in their state
GRAFTS = ("none", "sgd", *SQUARED)

Root = Callable[..., jax.Array]
RootOrder = float | Callable[[int], float] | None


class ScaleByShampooState(NamedTuple):
    """State of `scale_by_shampoo`, an entry for each shape (k, d_1, ..., d_r) of block.

    On a mesh every device holds all of it.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: Average of the gradients, (k, d_1, ..., d_r).
      nu: Average or sum of their squares for grafting, (k, d_1, ..., d_r); empty if the
        graft has none.
      statistics: For each axis the average or sum of G_(i) G_(i)^T, (k, d_i, d_i),
        float32 or wider.
      roots: Their inverse roots, of the same shapes; zero before the first.
    """

    count: jax.Array
    momentum: Any
    nu: Any
    statistics: Any
    roots: Any


def scale_by_shampoo(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-12,
    graft: str = "adam",
    graft_eps: float | jax.Array = 1e-8,
    graft_b2: float | jax.Array | None = None,
    every: int = 10,
    start: int | None = None,
    root_order: RootOrder = None,
    root: Root = kernels.inverse_root,
    block_size: int = 1024,
    bias_correction: bool = True,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies gradients by inverse roots of their second moments on every side.

    For a matrix, cut into blocks of at most `block_size`, and c_t = 1 - b2^t:

        M = b1 M + (1 - b1) G
        L = b2 L + (1 - b2) G G^T,   R = b2 R + (1 - b2) G^T G
        P_L = (L / c_t + eps I)^(-1/p),   P_R alike,   p = 4, every `every` steps
        U = P_L (M / (1 - b1^t)) P_R

    and U is scaled, block by block, to the norm that the method `graft` would give the
    update. With b2 = 1 the statistics are sums, without 1 - b2 and c_t. Before step
    `start` the graft's own direction is the update. A root that is not finite, or that
    `root` gives up, leaves the last one in use.

    The roots are a conditional on the step count, one decomposition for all factors of
    one size. Under `jax.vmap` over states it turns into a select and runs at every
    step: use scan-stacked leaves instead.

    Cost for m x n: 4 mn(m + n) FLOPs; per refresh 11 d^3 for each factor of size d with
    eigenvalues. State: mn, 2 (m^2 + n^2) and mn if the graft has squares, in numbers;
    24 bytes a parameter if m = n.

    Args:
      b1: Decay of the average of gradients, in [0, 1).
      b2: Decay of the statistics, in [0, 1), or exactly 1 for sums.
      eps: Added to the eigenvalues, in units of the statistics.
      graft: 'none'; 'sgd', the norm of the averaged gradient; 'adagrad', 'rmsprop',
        'adam' of the gradient divided by the root of its squares' sum, average,
        corrected average.
      graft_eps: Added to that root.
      graft_b2: Decay of the squares; None means b2, for 'adagrad' it is not used.
      every: Steps from one computation of the roots to the next.
      start: First step, counted from 1, with roots; None means `every`.
      root_order: The p above, or a function from the number of axes r to it; None
        means 2 r.
      root: Kernel `root(x, p, ridge=eps)`; `kernels.newton_inverse_root` for products
        alone, `functools.partial(kernels.inverse_root, relative=True)` for an eps in
        units of the largest eigenvalue.
      block_size: Largest block along each axis.
      bias_correction: Whether averages are corrected for their start at zero.
      views: Tree of `trees.MatrixView` or a function to it, two factors a matrix; or
        'axes', and every leaf has a factor for each of its axes.
      accumulator_dtype: Dtype of momentum and nu; None means float32 or wider.
      over: On a mesh, `sharding.spread(mesh, axes)`: each device works on matrices of
        its own and keeps their state. None: all devices do all.

    Returns:
      A transformation; its updates have the dtype of those that come in, no learning
      rate and no sign. A gradient whose squares overflow leaves the statistics alone.

    Raises:
      ValueError: If graft is unknown; if every, start or block_size is no positive
        integer; if root_order is not above 0; if b2 is 1 with a graft that
        averages; if a leaf is no matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_shampoo(b1=0.0, b2=1.0, graft="none", every=1)
      >>> g = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> print([f"{entry:.3f}" for entry in updates["kernel"].ravel()])
      ['-0.514', '0.857', '0.857', '0.514']

    Source:
      See `shampoo`.
    """
    start = every if start is None else start
    summed = not isinstance(b2, jax.Array) and b2 == 1
    decay = None if summed else b2
    _check(graft, summed and graft_b2 is None, every, start, block_size, root_order)
    graft_b2 = b2 if graft_b2 is None else graft_b2

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        blocks = jax.eval_shape(lambda stacks: _blocks(stacks, block_size)[0], shapes)
        return _start(blocks, graft, accumulator_dtype)

    def update(
        stacks: list[jax.Array], state: Any, places: list[jax.Array]
    ) -> tuple[list[jax.Array], tuple[Any, ...]]:
        del places
        t = jnp.asarray(optax.safe_increment(state.count))
        blocks, back = _blocks(stacks, block_size)

        def corrected(b: Any, x: jax.Array) -> jax.Array:
            return (x / (1 - b**t)).astype(x.dtype) if bias_correction else x

        m = list(map(functools.partial(_mixed, b1), state.momentum, blocks))
        direction = [corrected(b1, x) for x in m]
        grafted, nu = direction, []
        if graft in SQUARED:
            add = jnp.add if graft == "adagrad" else functools.partial(_mixed, graft_b2)
            nu = list(map(add, state.nu, map(jnp.square, blocks)))
            roots_of = [corrected(graft_b2, x) if graft == "adam" else x for x in nu]
            grafted = [
                _statistics.ratio(x, jnp.sqrt(y) + graft_eps)
                for x, y in zip(direction, roots_of, strict=True)
            ]
        statistics = _statistics.next_statistics(state.statistics, blocks, decay)

        def computed(statistics: Factors, roots: Factors) -> Factors:
            if not summed:
                statistics = jax.tree.map(functools.partial(corrected, b2), statistics)
            return _roots(statistics, roots, root, root_order, eps)

        due = (t == start) | ((t > start) & (t % every == 0))
        roots = jax.lax.cond(
            due, computed, lambda _, roots: roots, statistics, state.roots
        )
        out = [
            jnp.where(t >= start, _scaled_to(y, x, p, graft), y)
            for x, y, p in zip(direction, grafted, roots, strict=True)
        ]
        m, nu = (
            tuple(x.astype(old.dtype) for x, old in zip(*pair, strict=True))
            for pair in ((m, state.momentum), (nu, state.nu))
        )
        return back(out), (m, nu, statistics, roots)

    return links.on_stacks(
        "scale_by_shampoo", ScaleByShampooState, init, update, views=views, over=over
    )


def _check(
    graft: str, no_decay: bool, every: Any, start: Any, block: Any, order: Any
) -> None:
    if graft not in GRAFTS:
        raise ValueError(
            f"scale_by_shampoo: graft must be one of {GRAFTS}, got {graft!r}"
        )
    for name, value in (("every", every), ("start", start), ("block_size", block)):
        if int(value) != value or value < 1:
            raise ValueError(f"scale_by_shampoo: {name} must be 1 or more, got {value}")
    if isinstance(order, float | int) and order <= 0:
        raise ValueError(f"scale_by_shampoo: root_order must be above 0, got {order}")
    if no_decay and graft in ("rmsprop", "adam"):
        raise ValueError(
            f"scale_by_shampoo: b2=1 sums the statistics, but graft={graft!r} averages"
            " squares; give it a graft_b2, or graft='adagrad'"
        )


def _start(blocks: list[Any], graft: str, dtype: Any) -> tuple[Any, ...]:
    """Returns what is kept before the first gradient of blocks of these shapes."""

    def accumulators() -> Any:
        return tuple(jnp.zeros(x.shape, dtype or x.dtype) for x in blocks)

    def factors() -> Any:
        return tuple(
            tuple(jnp.zeros((x.shape[0], d, d), x.dtype) for d in x.shape[1:])
            for x in blocks
        )

    nu = accumulators() if graft in SQUARED else ()
    return accumulators(), nu, factors(), factors()


def _mixed(decay: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    return (decay * old.astype(new.dtype) + (1 - decay) * new).astype(new.dtype)


def _blocks(
    stacks: list[jax.Array], block_size: int
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], list[jax.Array]]]:
    """Cuts stacks into stacks of blocks, and returns the way back."""
    cut = [kernels.split_blocks(x, block_size, x.ndim - 1) for x in stacks]

    def back(blocks: list[jax.Array]) -> list[jax.Array]:
        remaining = iter(blocks)
        return [
            kernels.merge_blocks([next(remaining) for _ in own], x.shape, block_size)
            for own, x in zip(cut, stacks, strict=True)
        ]

    return [block for own in cut for block in own], back


def _roots(
    statistics: Factors, old: Factors, root: Root, root_order: RootOrder, eps: Any
) -> Factors:
    """Computes all roots, those of one size and one order together."""
    roots = list(old)
    for order in {len(own) for own in statistics}:
        p = root_order(order) if callable(root_order) else root_order or 2 * order
        members = [i for i, own in enumerate(statistics) if len(own) == order]
        (new,) = trees.by_shape(
            lambda x, p=p: (root(x, p, ridge=eps),),
            tuple(statistics[i] for i in members),
        )
        for i, own in zip(members, new, strict=True):
            roots[i] = tuple(map(_statistics.where_finite, own, roots[i]))
    return tuple(roots)


def _scaled_to(like: jax.Array, x: jax.Array, roots: Any, graft: str) -> jax.Array:
    """Multiplies blocks by their roots, and gives each the norm of that of `like`."""
    x = kernels.kronecker_apply(x, roots)
    if graft == "none":
        return x
    axes = tuple(range(1, x.ndim))
    lengths = [links.norm_over(y, axes) for y in (like, x)]
    return x * _statistics.ratio(*lengths)


def shampoo(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-12,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    graft: str = "adam",
    graft_eps: float | jax.Array = 1e-8,
    graft_b2: float | jax.Array | None = None,
    every: int = 10,
    start: int | None = None,
    root_order: RootOrder = None,
    root: Root = kernels.inverse_root,
    block_size: int = 1024,
    bias_correction: bool = True,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo for the matrices of a model and another optimizer for the rest.

    The direction is the gradient between inverse roots of its second moments, its size
    that of another method: with the graft 'adam', Adam's rates carry over. See
    `scale_by_shampoo` for the equations and the cost.

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta of the matrices: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix, or with `views='axes'`.
      b1: Decay of the average of gradients, in [0, 1).
      b2: Decay of the statistics, in [0, 1), or exactly 1 for sums.
      eps: Added to the eigenvalues, in units of the statistics.
      weight_decay: Decoupled decay of the matrices.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      graft: 'none', 'sgd', 'adagrad', 'rmsprop' or 'adam'.
      graft_eps: As for `scale_by_shampoo`, and so are those below.
      graft_b2: Decay of the graft's squares; None means b2.
      every: Steps from one computation of the roots to the next.
      start: First step with roots; None means `every`.
      root_order: Order p of the roots; None means twice the number of axes.
      root: Kernel of the roots.
      block_size: Largest block along each axis.
      bias_correction: Whether averages are corrected for their start at zero.
      views: Function to a tree of `trees.MatrixView`, that tree, or 'axes'.
      accumulator_dtype: Dtype of momentum and squares; None means float32 or wider.
      over: As for `scale_by_shampoo`.

    Returns:
      A transformation; the rate in force is in its state, `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_shampoo`; if `rest` is missing and a leaf needs it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.diag(jnp.array([3.0, 4.0])), "bias": jnp.ones(2)}
      >>> tx = optimizers.shampoo(0.1, rest=optimizers.adamw(0.01), every=1)
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [f"{entry:.4f}" for entry in jnp.diag(updates["kernel"])]
      ['-0.1000', '-0.1000']

    Source:
      V. Gupta, T. Koren, Y. Singer, "Shampoo: preconditioned stochastic tensor
      optimization", 2018, arXiv:1802.09568; grafting and blocks: R. Anil et al., 2020,
      arXiv:2002.09018. Conventions are those of facebookresearch/optimizers (H. Shi et
      al., 2023, arXiv:2309.06497). Differs from that code: small axes are not merged,
      convolutions are matrices (`views='axes'` has a factor an axis), eigenvalues lost
      in rounding are raised to its limit, nothing is added to the norm that is grafted
      away. google-research/precondition starts the statistics at eps I, has a ridge
      relative to the largest eigenvalue and momentum after the roots.
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_shampoo(
            b1=b1,
            b2=b2,
            eps=eps,
            graft=graft,
            graft_eps=graft_eps,
            graft_b2=graft_b2,
            every=every,
            start=start,
            root_order=root_order,
            root=root,
            block_size=block_size,
            bias_correction=bias_correction,
            views=views,
            accumulator_dtype=accumulator_dtype,
            over=over,
        )
        return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)

    return links.matrices_and_rest(matrices, rest, views)
