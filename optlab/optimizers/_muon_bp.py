"""MuonBP: Muon that orthogonalises blocks, and whole matrices now and then."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optlab import kernels, links, trees
from optlab.optimizers import _muon


class ScaleByMuonBpState(NamedTuple):
    """State of `scale_by_muon_bp`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      muon: State of the momentum, see `ScaleByMuonState`.
    """

    count: jax.Array
    muon: Any


class _Periodic:
    """A kernel that is one of two, by a condition known when the program runs."""

    def __init__(
        self, due: jax.Array, full: Callable, blockwise: Callable, reshards: bool
    ):
        self.due, self.full, self.blockwise = due, full, blockwise
        self.reshards = reshards

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the one or the other."""
        return jax.lax.cond(self.due, self.full, self.blockwise, x)


def scale_by_muon_bp(
    *,
    b1: float | jax.Array = 0.95,
    every: int = 5,
    blocks: tuple[int, int] = (1, 1),
    block_rate: float | jax.Array = 1.0,
    nesterov: bool = False,
    momentum: str = "sum",
    scale: _muon.Scale = "moonlight",
    orthogonalize: _muon.Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the blocks of the momentum, every so often all of it.

    At steps t = 0, P, 2P, ... the update is Muon's. At the steps in between a matrix of
    m x n is cut into p x q blocks, each with its own polar factor:

        u = scale(m, n) polar(m_t)                              t divides P
        u = block_rate scale(m/p, n/q) [polar(block of m_t)]    else

    Blocks are meant to be the shards of the matrix. On a mesh with Auto axes, with the
    bare kernel and blocks cut where the shards are, block steps send nothing. The two
    kinds of step are branches of a conditional of the compiled program, one for each
    shape; under `jax.vmap` over states it becomes a select, and both are run.

    Args:
      b1: Decay of the momentum, in [0, 1).
      every: Period P, 1 or more; with 1 this is Muon.
      blocks: Numbers p and q of blocks along fan-in and fan-out. An axis that they do
        not divide is cut into the largest number of blocks that divides both.
      block_rate: Rate of block steps over that of full steps.
      nesterov: As in `scale_by_muon`.
      momentum: As in `scale_by_muon`.
      scale: Factor by matrix shape, see `muon`, or a function of (fan_in, fan_out).
      orthogonalize: Kernel, (..., m, n) -> (..., m, n). With `sharding.over_axis` the
        values are the same on a mesh, but all steps send whole matrices.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation without learning rate and sign; updates keep the dtype of those
      that come in.

    Raises:
      ValueError: As `scale_by_muon`; if every or blocks is no positive integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_muon_bp(every=2, blocks=(1, 2), scale="none")
      >>> g = {"kernel": jnp.array([[3.0, 3.0]])}  # two blocks of one entry
      >>> state = tx.init(g)
      >>> for _ in range(3):
      ...     updates, state = tx.update(g, state)
      ...     print(f"{updates['kernel'][0, 0]:.3f}")
      0.492
      0.696
      0.492

    Source:
      See `muon_bp`.
    """
    if int(every) != every or every < 1:
        raise ValueError(f"scale_by_muon_bp: every must be 1 or more, got {every}")
    if len(blocks) != 2 or any(int(v) != v or v < 1 for v in blocks):
        raise ValueError(
            f"scale_by_muon_bp: blocks must be 1 or more, got {blocks}; one number is"
            " that of blocks along the fan-in, the other along the fan-out"
        )

    def muon(kernel: _muon.Kernel, scale: _muon.Scale) -> Any:
        return _muon.scale_by_muon(
            b1=b1,
            nesterov=nesterov,
            momentum=momentum,
            scale=scale,
            orthogonalize=kernel,
            views=views,
            accumulator_dtype=accumulator_dtype,
        )

    checked = muon(orthogonalize, scale)
    factor = scale if callable(scale) else _muon.SCALES[scale]
    # Blocks are cut where whole matrices are.
    inside = getattr(orthogonalize, "around", lambda wrap: wrap(orthogonalize))
    in_blocks = inside(lambda kernel: lambda x: _of_blocks(kernel, x, blocks))

    def full(x: jax.Array) -> jax.Array:
        return factor((x.shape[1], x.shape[2])) * orthogonalize(x)

    def blockwise(x: jax.Array) -> jax.Array:
        p, q = _dividing(x, blocks)
        size = factor((x.shape[1] // p, x.shape[2] // q))
        return (block_rate * size * in_blocks(x)).astype(x.dtype)

    reshards = getattr(orthogonalize, "reshards", False)

    def init(params: optax.Params) -> ScaleByMuonBpState:
        trees.leaf_views("scale_by_muon_bp", params, views)
        return ScaleByMuonBpState(jnp.zeros((), jnp.int32), checked.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMuonBpState]:
        del params, extra_args
        kernel = _Periodic(state.count % every == 0, full, blockwise, reshards)
        out, inner = muon(kernel, "none").update(updates, state.muon)
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, ScaleByMuonBpState(count, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _dividing(x: jax.Array, blocks: tuple[int, int]) -> tuple[int, int]:
    return math.gcd(blocks[0], x.shape[-2]), math.gcd(blocks[1], x.shape[-1])


def _of_blocks(
    kernel: _muon.Kernel, x: jax.Array, blocks: tuple[int, int]
) -> jax.Array:
    """Applies a kernel to the blocks of (k, m, n)."""
    p, q = _dividing(x, blocks)
    if (p, q) == (1, 1):
        return kernel(x)
    k, m, n = x.shape
    cut = _reshaped(x, (k, p, m // p, q, n // q)).swapaxes(2, 3)
    return _reshaped(kernel(cut).swapaxes(2, 3), (k, m, n))


def _reshaped(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Reshapes all axes but the first, the only one cut on Explicit axes."""
    sharding = jax.typeof(x).sharding
    if not any(sharding.spec):
        return x.reshape(shape)
    spec = PartitionSpec(sharding.spec[0], *(None,) * (len(shape) - 1))
    place = NamedSharding(sharding.mesh, spec)
    return jax.lax.reshape(x, shape, out_sharding=place)


def muon_bp(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.95,
    every: int = 5,
    blocks: tuple[int, int] = (1, 1),
    block_rate: float | jax.Array = 1.0,
    nesterov: bool = False,
    momentum: str = "sum",
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    cautious: bool = False,
    min_norm: float | jax.Array | None = None,
    scale: _muon.Scale = "moonlight",
    orthogonalize: _muon.Kernel = kernels.newton_schulz,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonBP for the matrices of a model and another optimizer for the rest.

    Muon for tensor parallelism: most steps orthogonalise the shards of a matrix apart,
    one step in `every` the whole matrix. See `scale_by_muon_bp`.

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta of the full steps: a number, a scalar array or a schedule.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      b1: Decay of the momentum, in [0, 1).
      every: Period of the full steps, 1 or more.
      blocks: Numbers of blocks along fan-in and fan-out.
      block_rate: Rate of block steps over that of full steps.
      nesterov: As in `muon`.
      momentum: As in `muon`.
      weight_decay: Decoupled decay of the matrices, multiplied by the learning rate.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      cautious: Whether decay acts only where it agrees with the update, see
        `links.add_decayed_weights`.
      min_norm: As in `muon`: 0 holds matrices with a gradient of zero.
      scale: Factor by matrix shape, as in `muon` with conv_scale='matrix'; for a block
        by its own shape.
      orthogonalize: Kernel, as in `scale_by_muon_bp`.
      views: As in `muon`.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_muon_bp`; if `rest` is missing and a leaf needs it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
      >>> tx = optimizers.muon_bp(0.1, rest=optimizers.adamw(0.01), blocks=(1, 2))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [f"{entry:.4f}" for entry in jnp.diag(updates["kernel"])]
      ['-0.0313', '-0.0313']

    Source:
      A. Khaled et al., "MuonBP: faster Muon via block-periodic orthogonalization",
      2025, arXiv:2510.16981. UNVERIFIED: period, ratio of the two rates and scale of
      the blocks, read in descriptions of the paper only. Differs from them: blocks are
      told by number, not found from the shards.
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_muon_bp(
            b1=b1,
            every=every,
            blocks=blocks,
            block_rate=block_rate,
            nesterov=nesterov,
            momentum=momentum,
            scale=scale,
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
