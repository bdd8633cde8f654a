"""SOAP: Adam in the eigenbasis of Shampoo's statistics."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _statistics
from optlab.optimizers._statistics import Factors


class ScaleBySoapState(NamedTuple):
    """State of `scale_by_soap`, one entry for each shape (k, d_1, ..., d_r) of stack.

    On a mesh every device holds all of it.

    Attributes:
      count: Gradients seen so far, shape (), int32.
      momentum: Average of gradients in the eigenbases, (k, d_1, ..., d_r).
      nu: Average of their squares in the eigenbases, (k, d_1, ..., d_r).
      statistics: For each axis the average of G_(i) G_(i)^T, (k, d_i, d_i), float32 or
        wider; None for an axis without a factor.
      bases: Their eigenbases, of the same shapes; zero before the first gradient.
    """

    count: jax.Array
    momentum: Any
    nu: Any
    statistics: Any
    bases: Any


Eigenbasis = Callable[[jax.Array], jax.Array]
Refresh = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def scale_by_soap(
    *,
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.95,
    b3: float | jax.Array | None = None,
    eps: float | jax.Array = 1e-8,
    every: int = 10,
    max_size: int = 10000,
    vectors: bool = False,
    normalize: bool = False,
    bias_correction: bool = True,
    eigenbasis: Eigenbasis = kernels.eigenbasis,
    refresh: Refresh = kernels.refresh_eigenbasis,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Runs Adam in the eigenbasis of the gradient's second moments.

    The first gradient G_0 only finds the bases, its update is zero. Then, for a matrix,
    with L, R averages of G G^T and G^T G with decay b3, Q_L, Q_R their eigenbases,

        G' = Q_L^T G Q_R
        M' = b1 M' + (1 - b1) G',   V = b2 V + (1 - b2) G'^2
        U  = sqrt(1 - b2^t) / (1 - b1^t)  Q_L [M' / (sqrt(V) + eps)] Q_R^T

    Every `every` steps, after the update, Q <- qr(L Q).Q with columns sorted by their
    Rayleigh quotients: V is sorted along, M' is turned into the new basis. Between
    refreshes M' stays in the basis. This part is a conditional on the step count, one
    eigendecomposition or QR for all factors of one size. Under `jax.vmap` over states
    it turns into a select and runs at every step: use scan-stacked leaves instead.

    Cost for m x n: 6 mn(m + n) FLOPs; per refresh about 5 d^3 for each factor of size d
    and 2 mn(m + n). State: 2 mn + 2 (m^2 + n^2) numbers, 24 bytes a parameter if m = n.

    Args:
      b1: Decay of the average of gradients, in [0, 1).
      b2: Decay of the average of squares, in [0, 1).
      b3: Decay of the statistics; None means b2.
      eps: Added to sqrt(V) before the correction of its bias.
      every: Steps from one refresh of the bases to the next.
      max_size: Axes longer than this keep the identity for a basis.
      vectors: Whether vectors have a basis too, with `views='axes'`; otherwise they
        get Adam.
      normalize: Whether Q_L [..] Q_R^T is scaled to a root mean square of 1.
      bias_correction: Whether the factor before it is there.
      eigenbasis: Kernel that finds the first bases, (k, d, d) -> (k, d, d).
      refresh: Kernel from statistics and bases to new bases and their order.
      views: Tree of `trees.MatrixView` or a function to it, two factors a matrix; or
        'axes', and every leaf has a factor for each of its axes, as in the authors'
        code.
      accumulator_dtype: Dtype of momentum and nu; None means float32 or wider.
      over: On a mesh, `sharding.spread(mesh, axes)`: each device works on matrices of
        its own and keeps their state. None: all devices do all.

    Returns:
      A transformation; its updates have the dtype of those that come in, no learning
      rate and no sign. A gradient whose squares overflow leaves the statistics alone.

    Raises:
      ValueError: If `every` or `max_size` is no positive integer; if a leaf is no
        matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_soap(eps=0.0)
      >>> first = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> updates, state = tx.update(first, tx.init(first))
      >>> print(updates["kernel"].sum())
      0.0
      >>> second = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
      >>> updates, _ = tx.update(second, state)
      >>> print([f"{entry:.3f}" for entry in updates["kernel"].ravel()])
      ['0.123', '-0.711', '-0.318', '1.838']

    Source:
      See `soap`.
    """
    for name, value in (("every", every), ("max_size", max_size)):
        if int(value) != value or value < 1:
            raise ValueError(f"scale_by_soap: {name} must be 1 or more, got {value}")
    b3 = b2 if b3 is None else b3

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        return _start(shapes, max_size, vectors, accumulator_dtype)

    def update(
        stacks: list[jax.Array], state: Any, places: list[jax.Array]
    ) -> tuple[list[jax.Array], tuple[Any, ...]]:
        del places
        first, t = state.count == 0, jnp.maximum(state.count, 1)
        turned = _turned(stacks, state.bases, transpose=True)

        def average(decay: Any, old: jax.Array, new: jax.Array) -> jax.Array:
            mixed = decay * old.astype(new.dtype) + (1 - decay) * new
            return jnp.where(first, 0, mixed).astype(new.dtype)

        m = list(map(functools.partial(average, b1), state.momentum, turned))
        v = list(map(functools.partial(average, b2), state.nu, map(jnp.square, turned)))
        ratios = [
            _statistics.ratio(a, jnp.sqrt(b) + eps) for a, b in zip(m, v, strict=True)
        ]
        out = _turned(ratios, state.bases)
        out = list(map(_to_unit_rms, out)) if normalize else out
        factor = jnp.sqrt(1 - b2**t) / (1 - b1**t) if bias_correction else 1.0
        out = [(factor * x).astype(x.dtype) for x in out]
        statistics = _statistics.next_statistics(state.statistics, stacks, b3)
        stages = (
            lambda statistics, *rest: rest,
            functools.partial(_found, eigenbasis),
            functools.partial(_refreshed, refresh),
        )
        stage = jnp.where(first, 1, jnp.where(state.count % every == 0, 2, 0))
        bases, m, v = jax.lax.switch(
            stage, stages, statistics, state.bases, tuple(m), tuple(v)
        )
        m, v = (
            jax.tree.map(lambda new, old: new.astype(old.dtype), *pair)
            for pair in ((m, state.momentum), (v, state.nu))
        )
        return out, (m, v, statistics, bases)

    return links.on_stacks(
        "scale_by_soap", ScaleBySoapState, init, update, views=views, over=over
    )


def _start(
    stacks: list[Any], max_size: int, vectors: bool, dtype: Any
) -> tuple[Any, ...]:
    """Returns what is kept before the first gradient of stacks of these shapes."""

    def zeros(stack: Any, axis: int) -> jax.Array | None:
        order, size = len(stack.shape) - 1, stack.shape[axis]
        if not math.prod(stack.shape) or size > max_size or (order < 2 and not vectors):
            return None
        return jnp.zeros((stack.shape[0], size, size), stack.dtype)

    def factors() -> Any:
        return tuple(
            tuple(zeros(stack, axis) for axis in range(1, len(stack.shape)))
            for stack in stacks
        )

    def accumulators() -> Any:
        return tuple(jnp.zeros(stack.shape, dtype or stack.dtype) for stack in stacks)

    return accumulators(), accumulators(), factors(), factors()


def _turned(
    stacks: Sequence[jax.Array], factors: Factors, transpose: bool = False
) -> list[jax.Array]:
    return [
        kernels.kronecker_apply(x, own, transpose=transpose)
        for x, own in zip(stacks, factors, strict=True)
    ]


def _to_unit_rms(x: jax.Array) -> jax.Array:
    square = jnp.mean(x * x, axis=tuple(range(1, x.ndim)), keepdims=True)
    return x / (1e-30 + jnp.sqrt(square))


def _found(eigenbasis: Eigenbasis, statistics: Factors, bases: Factors, *rest: Any):
    """Returns the first bases; momentum and nu are still zero."""
    del bases
    return trees.by_shape(lambda x: (eigenbasis(x),), statistics)[0], *rest


def _refreshed(refresh: Refresh, statistics, bases, momentum, nu):
    """Returns the next bases, and momentum and nu in their coordinates."""
    new, orders = trees.by_shape(refresh, statistics, bases)
    turns = jax.tree.map(
        lambda a, b: jnp.matmul(a.mT, b, precision="highest"), new, bases
    )
    return (
        new,
        tuple(_turned(momentum, turns)),
        tuple(_sorted(x, own) for x, own in zip(nu, orders, strict=True)),
    )


def _sorted(x: jax.Array, orders: tuple[jax.Array | None, ...]) -> jax.Array:
    for axis, order in enumerate(orders, start=1):
        if order is not None:
            others = [i for i in range(1, x.ndim) if i != axis]
            x = jnp.take_along_axis(x, jnp.expand_dims(order, others), axis=axis)
    return x


def soap(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.95,
    b3: float | jax.Array | None = None,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.01,
    decay_order: str = "after",
    mask: Any = None,
    every: int = 10,
    max_size: int = 10000,
    vectors: bool = False,
    normalize: bool = False,
    bias_correction: bool = True,
    eigenbasis: Eigenbasis = kernels.eigenbasis,
    refresh: Refresh = kernels.refresh_eigenbasis,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP for the matrices of a model and another optimizer for the rest.

    Adam in the eigenbasis of Shampoo's statistics, see `scale_by_soap`: where these
    are diagonal it is Adam. The first step finds the bases and moves nothing.

        w <- w - eta u,   w <- w - eta weight_decay w      (decay_order='after')
        w <- w - eta (u + weight_decay w)                  (decay_order='together')

    Args:
      learning_rate: Rate eta of the matrices: a number, a scalar array or a schedule;
        the authors use 3e-3 with a warm-up.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix, or with `views='axes'`.
      b1: Decay of the average of gradients, in [0, 1).
      b2: Decay of the average of squares, in [0, 1).
      b3: Decay of the statistics; None means b2.
      eps: As for `scale_by_soap`.
      weight_decay: Decoupled decay of the matrices.
      decay_order: 'after' decays what the step has left, as in the authors' code;
        'together' what was there before it, as in AdamW.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      every: Steps from one refresh of the bases to the next.
      max_size: Axes longer than this keep the identity for a basis.
      vectors: As for `scale_by_soap`, and so are those below.
      normalize: Whether updates are scaled.
      bias_correction: Whether averages are corrected for their start at zero.
      eigenbasis: Kernel of the first bases.
      refresh: Kernel of the next ones.
      views: Function to a tree of `trees.MatrixView`, that tree, or 'axes'.
      accumulator_dtype: Dtype of momentum and nu; None means float32 or wider.
      over: On a mesh, `sharding.spread(mesh, axes)`: each device works on matrices of
        its own and keeps their state. None: all devices do all.

    Returns:
      A transformation; the rate in force is in its state, `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_soap`; for another decay_order or without a needed rest.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
      >>> tx = optimizers.soap(0.1, rest=optimizers.adamw(0.01))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates, _ = tx.update(params, state, params)
      >>> [f"{entry:.4f}" for entry in jnp.diag(updates["kernel"])]
      ['-0.1009', '-0.1009']

    Source:
      N. Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", 2024,
      arXiv:2409.11321. Differs from the authors' code: convolutions are matrices, not
      tensors with four factors (`views='axes'` has those); vectors go to `rest`;
      momentum is turned at a refresh only, not to and fro at each step, which is the
      same in exact arithmetic; null spaces of the statistics are filled by a rule, not
      by rounding, see `kernels.eigenbasis`; small axes are not merged.
    """
    if decay_order not in links.DECAY_ORDERS:
        raise ValueError(
            f"soap: decay_order must be one of {links.DECAY_ORDERS}, got"
            f" {decay_order!r}"
        )

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_soap(
            b1=b1,
            b2=b2,
            b3=b3,
            eps=eps,
            every=every,
            max_size=max_size,
            vectors=vectors,
            normalize=normalize,
            bias_correction=bias_correction,
            eigenbasis=eigenbasis,
            refresh=refresh,
            views=views,
            accumulator_dtype=accumulator_dtype,
            over=over,
        )
        return _not_at_first(
            links.descend(
                core,
                learning_rate,
                weight_decay=weight_decay,
                mask=mask,
                decay_order=decay_order,
            )
        )

    return links.matrices_and_rest(matrices, rest, views)


def _not_at_first(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Moves nothing while the bases are being found, not even by decay."""

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise TypeError("soap: decay needs the parameters; call update(.., params)")
        first = state[0].count == 0
        out, state = inner.update(updates, state, params, **extra_args)
        return jax.tree.map(lambda u: jnp.where(first, 0, u), out), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
