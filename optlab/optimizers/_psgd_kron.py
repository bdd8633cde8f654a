"""PSGD-Kron: gradients whitened by Kronecker factors that are learnt by descent."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees
from optlab.optimizers import _kron_factors
from optlab.optimizers._kron_factors import Normal

Probability = float | jax.Array | optax.Schedule


class ScaleByPsgdKronState(NamedTuple):
    """State of `scale_by_psgd_kron`, an entry for each shape of stack, (k, d_1, ..).

    On a mesh every device holds all of it, or with `over` a part of the rows.

    Attributes:
      count: Updates applied so far, shape (), int32.
      since: Updates since the last refresh, shape (), int32.
      key: Random key of all draws, shape (); it never changes.
      momentum: Average of the gradients, (k, d_1, ..., d_r).
      factors: For each axis Q_i, (k, d_i, d_i) or (k, d_i), float32 or wider.
      norms: For each axis the norm that the last step was divided by, (k,).
    """

    count: jax.Array
    since: jax.Array
    key: jax.Array
    momentum: Any
    factors: Any
    norms: Any


def annealed_probability(count: jax.typing.ArrayLike) -> jax.Array:
    """Returns 1 for 500 steps, then decays by a thousandth a step down to 0.03.

    Args:
      count: Updates so far, t.

    Returns:
      clip(exp((500 - t) / 1000), 0.03, 1), shape of count.

    Example:
      >>> from optlab import optimizers
      >>> [f"{optimizers.annealed_probability(t):.2f}" for t in (0, 1000, 9000)]
      ['1.00', '0.61', '0.03']

    Source:
      E. Walters, psgd_jax.
    """
    return jnp.clip(jnp.exp(-0.001 * (jnp.asarray(count) - 500.0)), 0.03, 1.0)


def scale_by_psgd_kron(
    *,
    b1: float | jax.Array = 0.9,
    running_mean: bool = False,
    whiten: str = "momentum",
    probability: Probability = annealed_probability,
    refresh_first: bool = True,
    geometry: str = "EQ",
    size: float | jax.Array = 0.1,
    norm_decay: float | jax.Array = 0.0,
    probes: int = 0,
    damping: float | jax.Array = 1e-9,
    relative_damping: float | jax.Array = 2**-11.5,
    init_scale: float | jax.Array = 1.0,
    diagonal: str = "long",
    max_size: int = 8192,
    max_skew: float = math.inf,
    min_order: int = 2,
    clip_rms: float | jax.Array | None = 1.1,
    clip_entries: float | jax.Array | None = None,
    eps: float | jax.Array = 1e-8,
    key: jax.Array | None = None,
    normal: Normal = jax.random.normal,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Whitens gradients with P = Q^T Q, a Kronecker product of triangular factors.

    For a matrix, with V normal noise and d its damping:

        M = b1 M + (1 - b1) G,   M' = M / (1 - b1^t)
        X = M' + d V,   A = Q_L X Q_R^T,   B = Q_L^-T V Q_R^-1               on refresh
        Q_L <- Q_L - size triu(A A^T - B B^T) Q_L / ||A A^T + B B^T||,   Q_R alike
        U = Q_L^T Q_L M' Q_R^T Q_R,  scaled down to a root mean square of 1.1

    At the fixed point P = E[g g^T]^(-1/2) as far as a Kronecker product can be, and U
    has entries near 1. No eigenvalues, no QR: products and triangular solves.

    A counter decides the refresh, not a die: it is due when the steps since the last
    one reach 1 / probability. This part is a conditional on a scalar, run once for each
    shape of matrix. Under `jax.vmap` over states it turns into a select and runs at
    every step: use scan-stacked leaves instead.

    Cost for m x n: 4 mn(m + n) FLOPs; per refresh about 7 mn(m + n) + m^3 + n^3. State:
    mn + m^2 + n^2 numbers, 12 bytes a parameter if m = n.

    Args:
      b1: Decay of the average of gradients, in [0, 1).
      running_mean: Whether that average starts as the plain mean of the gradients, with
        decay min(t / (1 + t), b1), in place of the correction 1 - b1^t.
      whiten: 'momentum' or 'gradient', what the factors learn to whiten; it is always
        the average that they are applied to.
      probability: Refreshes a step, in (0, 1], or a function of the updates so far.
      refresh_first: Whether an update already uses the factors of its own refresh.
      geometry: Coordinates of the factors' step, see `kernels.whitening_step`; only
        'EQ' has triangular factors and solves.
      size: Size of their step, in (0, 1).
      norm_decay: Decay of the norm below it, in [0, 1).
      probes: Random vectors that bound this norm; 0 uses the largest row.
      damping: Noise added to what is whitened, in units of the gradient: P stays below
        1 / damping, where there is no gradient too.
      relative_damping: The same as a share of the mean size of its entries.
      init_scale: Q at the start, a multiple of the identity.
      diagonal: Which factors are diagonal: 'long', those beyond the limits below;
        also 'longest', that of the longest axis (of the last among equals); also
        'longer', that axis if it is alone; or 'all'.
      max_size: Longest axis with a full factor.
      max_skew: A full factor has at most max_skew times as many entries as the matrix.
      min_order: Fewest axes of a tensor with full factors; 1 includes vectors.
      clip_rms: Largest root mean square of a matrix's update; None for no limit.
      clip_entries: Largest entry of an update after that; None for no limit.
      eps: Added to the root mean square, before it is compared.
      key: Random key of the noise; None means `jax.random.key(0)`.
      normal: Function of key, shape and dtype that draws.
      views: Tree of `trees.MatrixView` or a function to it, two factors a matrix; or
        'axes', and every leaf has a factor for each of its axes.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.
      over: On a mesh, `sharding.spread(mesh, axes)`: each device works on matrices of
        its own and keeps their state. None: all devices do all.

    Returns:
      A transformation; its updates have the dtype of those that come in, no learning
      rate and no sign. A gradient whose squares overflow leaves the factors alone.

    Raises:
      ValueError: If a word is unknown, a number out of range, or a leaf no matrix.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_psgd_kron(clip_rms=None)
      >>> g = {"kernel": jnp.diag(jnp.array([9.0, 1.0]))}
      >>> state, update = tx.init(g), jax.jit(tx.update)
      >>> for step in range(501):
      ...     updates, state = update(g, state)
      ...     if step % 500 == 0:
      ...         print([f"{x:.0f}" for x in jnp.diag(updates["kernel"])])
      ['6', '1']
      ['1', '2']

    Source:
      See `psgd_kron`.
    """
    words = {"whiten": whiten, "geometry": geometry, "diagonal": diagonal}
    numbers = {"max_size": (max_size, 1), "min_order": (min_order, 1)}
    numbers["probes"] = (probes, 0)
    _kron_factors.require_valid(words, numbers, probability)
    limits = {"max_size": max_size, "max_skew": max_skew, "min_order": min_order}
    fit = functools.partial(
        _kron_factors.fitted,
        damping=(damping, relative_damping),
        probes=probes,
        normal=normal,
        geometry=geometry,
        size=size,
        norm_decay=norm_decay,
    )

    def init(shapes: list[Any]) -> tuple[Any, ...]:
        factors = [
            _kron_factors.first(x, init_scale, diagonal, **limits) for x in shapes
        ]
        start = jax.random.key(0) if key is None else key
        return (
            jnp.zeros((), jnp.int32),
            jax.random.fold_in(start, 0),  # not the caller's own, which may be donated
            tuple(jnp.zeros(x.shape, accumulator_dtype or x.dtype) for x in shapes),
            tuple(factors),
            tuple(tuple(jnp.zeros(len(q), q.dtype) for q in own) for own in factors),
        )

    def update(
        stacks: list[jax.Array], state: Any, places: list[jax.Array]
    ) -> tuple[list[jax.Array], tuple[Any, ...]]:
        del places
        momentum, means = _averaged(stacks, state, b1, running_mean)
        chance = probability(state.count) if callable(probability) else probability
        since = jnp.asarray(optax.safe_increment(state.since))
        due = since >= 1 / jnp.asarray(chance, float)
        sources = means if whiten == "momentum" else stacks
        noise_key = jax.random.fold_in(state.key, state.count)

        def refreshed(*old: Any) -> tuple[Any, ...]:
            pairs = [fit(noise_key, *own) for own in zip(sources, *old, strict=True)]
            return tuple(zip(*pairs, strict=True))

        factors, norms = jax.lax.cond(
            due, refreshed, lambda *old: old, state.factors, state.norms
        )
        used = factors if refresh_first else state.factors
        out = [
            _kron_factors.clipped(u, clip_rms, clip_entries, eps)
            for u in map(_kron_factors.whitened, means, used)
        ]
        since = jnp.where(due, 0, since)
        return out, (since, state.key, momentum, factors, norms)

    who = "scale_by_psgd_kron"
    return links.on_stacks(
        who, ScaleByPsgdKronState, init, update, views=views, over=over
    )


def _averaged(
    stacks: list[jax.Array], state: Any, b1: Any, running_mean: bool
) -> tuple[tuple[jax.Array, ...], list[jax.Array]]:
    """Returns the next momentum, and what it says of the mean gradient."""
    seen = jnp.asarray(state.count, float)  # an int32 divides in float32
    decay = jnp.minimum(seen / (seen + 1), b1) if running_mean else b1
    bias = 1.0 if running_mean else 1 - b1 ** optax.safe_increment(state.count)
    momentum = tuple(
        (decay * old.astype(x.dtype) + (1 - decay) * x).astype(old.dtype)
        for old, x in zip(state.momentum, stacks, strict=True)
    )
    return momentum, [
        (m.astype(x.dtype) / bias).astype(x.dtype)
        for m, x in zip(momentum, stacks, strict=True)
    ]


def psgd_kron(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.9,
    running_mean: bool = False,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    whiten: str = "momentum",
    probability: Probability = annealed_probability,
    refresh_first: bool = True,
    geometry: str = "EQ",
    size: float | jax.Array = 0.1,
    norm_decay: float | jax.Array = 0.0,
    probes: int = 0,
    damping: float | jax.Array = 1e-9,
    relative_damping: float | jax.Array = 2**-11.5,
    init_scale: float | jax.Array = 1.0,
    diagonal: str = "long",
    max_size: int = 8192,
    max_skew: float = math.inf,
    min_order: int = 2,
    clip_rms: float | jax.Array | None = 1.1,
    clip_entries: float | jax.Array | None = None,
    eps: float | jax.Array = 1e-8,
    key: jax.Array | None = None,
    normal: Normal = jax.random.normal,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """PSGD-Kron for the matrices of a model and another optimizer for the rest.

    The averaged gradient, whitened on every side by triangular factors that follow it
    by descent. Entries of the update are near 1, so rates are near a third of Adam's.
    See `scale_by_psgd_kron` for the equations and the cost.

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    The method's inventor now prefers `geometry="Q0.5EQ1.5"` with `norm_decay=0.9`,
    `probes=32`, `whiten="gradient"`, `b1=0.0` or `running_mean=True`, `max_skew=1.0`,
    `clip_rms=2.0`, `clip_entries=10.0`, `relative_damping=0.0` and `probability=1.0`.

    Args:
      learning_rate: Rate eta of the matrices: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix, or with `views='axes'`.
      b1: Decay of the average of gradients, in [0, 1).
      running_mean: Whether it starts as their plain mean.
      weight_decay: Decoupled decay of the matrices.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      whiten: 'momentum' or 'gradient'.
      probability: Refreshes a step, or a function of the updates so far.
      refresh_first: As for `scale_by_psgd_kron`, and so are those below.
      geometry: Coordinates of the factors' step.
      size: Size of that step.
      norm_decay: Decay of the norm below it.
      probes: Random vectors that bound this norm.
      damping: Noise added to what is whitened.
      relative_damping: The same as a share of its mean size.
      init_scale: Q at the start.
      diagonal: 'long', 'longest', 'longer' or 'all'.
      max_size: Longest axis with a full factor.
      max_skew: Limit of a full factor's entries.
      min_order: Fewest axes with full factors.
      clip_rms: Largest root mean square of a matrix's update.
      clip_entries: Largest entry of an update.
      eps: Added to the root mean square.
      key: Random key of the noise.
      normal: Function that draws.
      views: Function to a tree of `trees.MatrixView`, that tree, or 'axes'.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.
      over: As for `scale_by_psgd_kron`.

    Returns:
      A transformation; the rate in force is in its state, `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_psgd_kron`; if `rest` is missing and a leaf needs it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.diag(jnp.array([3.0, 4.0])), "bias": jnp.ones(2)}
      >>> tx = optimizers.psgd_kron(0.1, rest=optimizers.adamw(0.01))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(f"{jnp.sqrt(jnp.mean(updates['kernel'] ** 2)):.4f}")
      0.1100

    Source:
      X.-L. Li, "Preconditioned stochastic gradient descent", 2015, arXiv:1512.04202,
      and "Stochastic Hessian fittings with Lie groups", 2024, arXiv:2402.11858.
      Defaults are those of psgd_jax (E. Walters), but for the damping, which is
      psgd_torch's; timm's Kron has `damping=0`, `relative_damping=0`, `max_size=2048`.
      Differs from the authors' code: matrices of one shape share their noise; factors
      are balanced at every refresh, see `kernels.whitening_step`; psgd_torch throws a
      die for each refresh; convolutions are matrices, vectors go to `rest`
      (`views='axes'` has a factor an axis); small axes are not merged.
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_psgd_kron(
            b1=b1,
            running_mean=running_mean,
            whiten=whiten,
            probability=probability,
            refresh_first=refresh_first,
            geometry=geometry,
            size=size,
            norm_decay=norm_decay,
            probes=probes,
            damping=damping,
            relative_damping=relative_damping,
            init_scale=init_scale,
            diagonal=diagonal,
            max_size=max_size,
            max_skew=max_skew,
            min_order=min_order,
            clip_rms=clip_rms,
            clip_entries=clip_entries,
            eps=eps,
            key=key,
            normal=normal,
            views=views,
            accumulator_dtype=accumulator_dtype,
            over=over,
        )
        return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)

    return links.matrices_and_rest(matrices, rest, views)
