"""AdaHessian: Adam whose second moment is that of the Hessian's diagonal."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import estimators, links, trees

AVERAGES = ("inputs", "windows", "none")


class ScaleByAdahessianState(NamedTuple):
    """State of `scale_by_adahessian`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      mu: Mean gradient, shaped like the parameters, float32 or wider.
      nu: Mean square of the curvature, shaped like the parameters, float32 or wider.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adahessian(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-4,
    hessian_power: float | jax.Array = 1.0,
    average: str = "inputs",
    abs_before_average: bool = True,
    every: int = 1,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the mean gradient by the root mean square of the curvature.

    D_t is a noisy diagonal of the Hessian, and s_t its mean size over a block of
    entries that share one value:

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_n = b2 v_{n-1} + (1 - b2) s_n^2         (n counts the steps with a new D)
        u_t = (m_t / (1 - b1^t)) / ((v_n / (1 - b2^n))^(hessian_power / 2) + eps)

    Updates need `hessian_diag`, a tree like the parameters, or `loss_fn` and `key`;
    with these D_t comes from `estimators.hutchinson` on steps where it is due.

    Args:
      b1: Decay of the mean gradient, in [0, 1).
      b2: Decay of the mean square of the curvature, in [0, 1).
      eps: Added to the divisor, in units of the curvature to the hessian_power: where
        there is no curvature a step is the mean gradient over eps. It is the floor.
      hessian_power: Power k of the curvature, in [0, 1]; 1 is a Newton step.
      average: Blocks. 'inputs': a matrix is averaged over its fan-in and a convolution
        over its window, which is its first axes in Flax; 'windows': convolutions only;
        'none': every entry for itself. Leaves that are no matrices stand alone.
      abs_before_average: Whether signs are dropped before averaging, so that curvature
        of both signs cannot cancel: the authors' code. Their paper averages first.
      every: Steps from one D to the next.
      views: Tree of `trees.MatrixView` or the function that finds it; it tells which
        axes are inputs.
      accumulator_dtype: Dtype of both means; None means float32 or wider.

    Returns:
      A transformation without learning rate and sign; a zero gradient at the start
      gives a zero update.

    Raises:
      ValueError: If average is unknown or every is below 1; as
        `estimators.given_or_estimated_diagonal`.
      TypeError: If an update has neither `hessian_diag` nor `loss_fn` and `key`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> loss = lambda x: jnp.sum(jnp.array([1.0, 10.0, 100.0]) * x**2) / 2
      >>> x, tx = jnp.ones(3), optimizers.scale_by_adahessian()
      >>> updates, _ = tx.update(
      ...     jax.grad(loss)(x), tx.init(x), x, loss_fn=loss, key=jax.random.key(0)
      ... )
      >>> [f"{entry:.4f}" for entry in updates]
      ['0.9999', '1.0000', '1.0000']

    Source:
      See `adahessian`.
    """
    if average not in AVERAGES:
        raise ValueError(
            f"scale_by_adahessian: average must be one of {AVERAGES}, got {average!r}"
        )
    if int(every) != every or every < 1:
        raise ValueError(f"scale_by_adahessian: every must be at least 1, got {every}")

    def init(params: optax.Params) -> ScaleByAdahessianState:
        wide = links.widen(params)
        mu, nu = (optax.tree.zeros_like(wide, dtype=accumulator_dtype) for _ in "mn")
        return ScaleByAdahessianState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdahessianState]:
        count = jnp.asarray(optax.safe_increment(state.count))

        def refreshed(nu: Any) -> Any:
            diagonal = estimators.given_or_estimated_diagonal(
                "scale_by_adahessian", updates, params, extra_args
            )
            axes = _block_axes(updates, views, average)
            return jax.tree.map(
                lambda v, d, a: _mean_square(v, d, a, b2, abs_before_average),
                nu,
                links.widen(diagonal),
                axes,
            )

        if every == 1:
            nu = refreshed(state.nu)
        else:
            nu = jax.lax.cond(
                state.count % every == 0, refreshed, lambda nu: nu, state.nu
            )
        refreshes = optax.safe_increment(state.count // every)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            curvature = jnp.sqrt(v.astype(m.dtype)) / jnp.sqrt(1 - b2**refreshes)
            return m / (1 - b1**count) / (curvature**hessian_power + eps)

        mu = jax.tree.map(
            lambda m, g: b1 * m.astype(g.dtype) + (1 - b1) * g,
            state.mu,
            links.widen(updates),
        )
        out = jax.tree.map(
            lambda m, v, u: direction(m, v).astype(u.dtype), mu, nu, updates
        )
        mu = jax.tree.map(lambda new, m: new.astype(m.dtype), mu, state.mu)
        return out, ScaleByAdahessianState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _mean_square(v, diagonal, axes, b2, abs_before_average):
    """Moves the mean square v towards the square of the block's curvature."""
    size = jnp.abs(diagonal) if abs_before_average else diagonal
    if axes:
        size = jnp.mean(size, axis=axes, keepdims=True)
    return (b2 * v.astype(size.dtype) + (1 - b2) * size * size).astype(v.dtype)


def _block_axes(tree: Any, views: Any, average: str) -> Any:
    """Returns a tree with the axes over which each leaf is averaged."""
    known = trees.views_by_path(tree, views)

    def axes(path: Any, x: Any) -> tuple[int, ...]:
        name = trees.path_string(path)
        view = known.get(name)
        if view is None or average == "none" or not x.size:
            return ()
        # Three axes are summed over by a convolution alone; two also by the output
        # projection of an attention, so there the name decides.
        window = len(view.reduction) > 2 or "conv" in name.lower()
        if window and len(view.reduction) > 1:
            return view.reduction[:-1]
        return view.reduction if average == "inputs" else ()

    return jax.tree_util.tree_map_with_path(axes, tree)


def adahessian(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-4,
    hessian_power: float | jax.Array = 1.0,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    average: str = "inputs",
    abs_before_average: bool = True,
    every: int = 1,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian: steps as long as the curvature allows, from one product a step.

    The update is that of `scale_by_adahessian`, then

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta, near 0.15: a number, a scalar array or a schedule.
      b1: Decay of the mean gradient, in [0, 1).
      b2: Decay of the mean square of the curvature, in [0, 1).
      eps: Added to the divisor.
      hessian_power: Power of the curvature, in [0, 1].
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      average: 'inputs', 'windows' or 'none', see `scale_by_adahessian`.
      abs_before_average: Whether signs are dropped before averaging.
      every: Steps from one estimate of the curvature to the next.
      views: As for `scale_by_adahessian`.
      accumulator_dtype: Dtype of both means; None means float32 or wider.

    Returns:
      A transformation; updates take `hessian_diag`, or `loss_fn` and `key`.

    Raises:
      ValueError: As `scale_by_adahessian`.
      TypeError: As `scale_by_adahessian`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> x, tx = jnp.ones(2), optimizers.adahessian(0.15)
      >>> updates, _ = tx.update(x, tx.init(x), x, hessian_diag=jnp.array([1.0, 2.0]))
      >>> [f"{entry:.4f}" for entry in updates]
      ['-0.1500', '-0.0750']

    Source:
      Yao et al., "AdaHessian: an adaptive second order optimizer for machine
      learning", 2020, arXiv:2006.00719. `average='inputs'` is their instruction code,
      'windows' their code for images. Differs from the authors' code: embeddings are
      not averaged (theirs: over their features); on several devices the estimate is
      one of the whole loss (theirs drops the mean over devices).
    """
    core = scale_by_adahessian(
        b1=b1,
        b2=b2,
        eps=eps,
        hessian_power=hessian_power,
        average=average,
        abs_before_average=abs_before_average,
        every=every,
        views=views,
        accumulator_dtype=accumulator_dtype,
    )
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
