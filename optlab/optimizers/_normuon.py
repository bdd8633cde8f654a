"""NorMuon: Muon whose output neurons all move by the same amount."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees
from optlab.optimizers import _muon


class ScaleByNormuonState(NamedTuple):
    """State of `scale_by_normuon`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      muon: State of the momentum, see `ScaleByMuonState`.
      second_moment: Mean square of Muon's direction over the fan-in, one number an
        output neuron: shaped like the parameters with 1 in place of the axes that a
        layer sums over; float32 or wider.
    """

    count: jax.Array
    muon: Any
    second_moment: Any


def scale_by_normuon(
    *,
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.95,
    eps: float | jax.Array = 1e-10,
    nesterov: bool = True,
    momentum: str = "average",
    scale: _muon.Scale = "jordan",
    conv_scale: str = "window",
    orthogonalize: _muon.Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises momentum and gives every output neuron the same step size.

    With o = scale(m, n) polar(...) the direction of Muon, fan-in by fan-out, and j one
    of its n columns,

        v_j = b2 v_j + (1 - b2) mean_i o_ij^2        no bias correction
        p_ij = o_ij / (sqrt(v_j) + eps)
        u = p ||o||_F / (||p||_F + eps)

    Each matrix keeps the norm that Muon gives it, so a bias correction of v would
    change nothing.

    Args:
      b1: Decay of the momentum, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the second moment and to the norm.
      nesterov: As in `scale_by_muon`.
      momentum: As in `scale_by_muon`.
      scale: Factor by matrix shape, see `muon`, or a function of (fan_in, fan_out).
      conv_scale: As in `muon`.
      orthogonalize: Kernel, (..., m, n) -> (..., m, n).
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation without learning rate and sign; updates keep the dtype of those
      that come in. A zero momentum gives a zero update.

    Raises:
      ValueError: As `scale_by_muon`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> g = {"kernel": jnp.array([[1.0, 3.0, 0.0], [0.0, 1.0, 2.0]])}
      >>> for tx in (optimizers.scale_by_muon(), optimizers.scale_by_normuon()):
      ...     updates, _ = tx.update(g, tx.init(g))
      ...     neurons = jnp.linalg.norm(updates["kernel"], axis=0)
      ...     print([f"{norm:.3f}" for norm in neurons])
      ['0.355', '0.965', '1.008']
      ['0.832', '0.832', '0.832']

    Source:
      See `normuon`.
    """
    muon = _muon.scale_by_muon(
        b1=b1,
        nesterov=nesterov,
        momentum=momentum,
        scale=scale,
        conv_scale=conv_scale,
        orthogonalize=orthogonalize,
        views=views,
        accumulator_dtype=accumulator_dtype,
    )

    # One program: sums over devices that are started one by one may block each other.
    first_means = jax.jit(functools.partial(_mean_over_fan_in, views=views))

    def init(params: optax.Params) -> ScaleByNormuonState:
        zeros = jax.tree.map(jnp.zeros_like, links.widen(params))
        # An array in place of none: Optax asks so what is not shaped like parameters.
        second: Any = first_means(zeros) if jax.tree.leaves(zeros) else jnp.zeros(())
        return ScaleByNormuonState(jnp.zeros((), jnp.int32), muon.init(params), second)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByNormuonState]:
        del params, extra_args
        if not jax.tree.leaves(updates):
            return updates, state
        direction, inner = muon.update(links.widen(updates), state.muon)
        second = jax.tree.map(
            lambda v, new: links.settled((b2 * v + (1 - b2) * new).astype(v.dtype)),
            state.second_moment,
            _mean_over_fan_in(jax.tree.map(jnp.square, direction), views),
        )
        even = jax.tree.map(lambda o, v: o / (jnp.sqrt(v) + eps), direction, second)
        out = jax.tree.map(
            lambda o, u: o.astype(u.dtype),
            _with_norms_of(direction, even, views, eps),
            updates,
        )
        return out, ScaleByNormuonState(
            jnp.asarray(optax.safe_increment(state.count)), inner, second
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _mean_over_fan_in(tree: Any, views: Any) -> Any:
    """Averages each leaf over the axes that its layer sums over; keeps the axes."""
    leaves, treedef = jax.tree.flatten(tree)
    found = trees.leaf_views("scale_by_normuon", tree, views)
    means = []
    for x, view in zip(leaves, found, strict=True):
        rows = math.prod(x.shape[axis] for axis in view.reduction)
        mean = jnp.sum(x, view.reduction, keepdims=True) / max(rows, 1)
        means.append(links.settled(mean))
    return treedef.unflatten(means)


def _with_norms_of(wanted: Any, tree: Any, views: Any, eps: float | jax.Array) -> Any:
    """Scales each matrix of a tree to the Frobenius norm that it has in another."""

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True))

    # Nothing here multiplies matrices: sharded ones may stay where they are.
    stacks, restore = trees.matrix_stacks(
        "scale_by_normuon", tree, views, resharding=True
    )
    models, _ = trees.matrix_stacks("scale_by_normuon", wanted, views, resharding=True)
    return restore(
        [x * (norm(y) / (norm(x) + eps)) for x, y in zip(stacks, models, strict=True)]
    )


def normuon(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.95,
    eps: float | jax.Array = 1e-10,
    nesterov: bool = True,
    momentum: str = "average",
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    cautious: bool = False,
    min_norm: float | jax.Array | None = None,
    scale: _muon.Scale = "jordan",
    conv_scale: str = "window",
    orthogonalize: _muon.Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon for the matrices of a model and another optimizer for the rest.

    Muon's directions have even singular values but uneven columns: some neurons move
    far more than others. NorMuon divides by a running size of each neuron and gives the
    matrix its norm back. State: Muon's and one number a neuron.

        u_t = Muon's direction, evened out over neurons, see `scale_by_normuon`
        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta of the matrices: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      b1: Decay of the momentum, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the second moment and to the norm.
      nesterov: As in `muon`.
      momentum: As in `muon`.
      weight_decay: Decoupled decay of the matrices, multiplied by the learning rate.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      cautious: Whether decay acts only where it agrees with the update, see
        `links.add_decayed_weights`.
      min_norm: As in `muon`: 0 holds matrices with a gradient of zero.
      scale: Factor by matrix shape, as in `muon`.
      conv_scale: As in `muon`.
      orthogonalize: Kernel, as in `muon`; on a mesh wrap it in `sharding.over_axis`.
      views: As in `muon`.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `muon`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
      >>> tx = optimizers.normuon(0.1, rest=optimizers.adamw(0.01))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [f"{entry:.4f}" for entry in jnp.diag(updates["kernel"])]
      ['-0.1108', '-0.1108']

    Source:
      Z. Li et al., "NorMuon: making Muon more efficient and scalable", 2025,
      arXiv:2510.05491, and the authors' code. Differs from the authors' code: float32
      for bfloat16, nothing added to the norm before Newton-Schulz, and a convolution is
      evened out as one matrix (theirs: filter by filter). UNVERIFIED: the
      paper's own factor on the rate, which the code does not have. Other codes use
      b2 = 0.9 and one number along the longer side of a matrix.
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_normuon(
            b1=b1,
            b2=b2,
            eps=eps,
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
