"""Dion: orthogonal updates of low rank, and a momentum that keeps what they miss."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees


class ScaleByDionState(NamedTuple):
    """State of `scale_by_dion`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      momentum: Sum of gradients less what was used, shaped like the parameters; float32
        or wider, or `accumulator_dtype`.
      basis: Right factors Q, one array (k, fan-in, r) for each matrix shape, float32 or
        wider.
    """

    count: jax.Array
    momentum: Any
    basis: Any


def scale_by_dion(
    *,
    b1: float | jax.Array = 0.95,
    rank: int = 768,
    eps: float | jax.Array = 1e-8,
    key: jax.Array | None = None,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Approximates momentum by one power iteration and makes that orthogonal.

    For X the momentum of a matrix, fan-in m by fan-out n, Q of r columns,

        X = X + G
        P = qr(X^T Q).Q,   R = X P                 n x r and m x r
        X = X - (1 - b1) R P^T                     what was used fades, the rest stays
        Q = R with columns of length 1 (+ eps)
        u = sqrt(n / m) Q P^T

    Q starts random and turns from step to step towards the r largest directions.
    Cost: 6 mnr + 2 n r^2 FLOPs and a QR of n x r. State: one copy of the parameters and
    m r numbers a matrix.

    Args:
      b1: Factor on the used part of the momentum, in [0, 1).
      rank: Number r of directions, 1 or more; at most min(m, n) are taken.
      eps: Added to the length of a column of R, in units of the momentum.
      key: Random key of the first Q, the same for all matrices of one shape; None means
        `jax.random.key(0)`.
      views: Tree of `trees.MatrixView`, or a function from the tree to it.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.
      over: On a mesh, `sharding.spread(mesh, axes)`: each device works on matrices of
        its own and keeps their bases. None: all devices do all.

    Returns:
      A transformation without learning rate and sign; updates keep the dtype of those
      that come in. A zero momentum gives a zero update.

    Raises:
      ValueError: If rank is no positive integer or a leaf is no matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_dion(rank=1, b1=0.75)
      >>> g = {"kernel": jnp.array([[4.0, 0.0], [0.0, 0.0]])}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> print(updates["kernel"][0, 0], state.momentum["kernel"][0, 0])
      1.0 3.0

    Source:
      See `dion`.
    """
    if int(rank) != rank or rank < 1:
        raise ValueError(f"scale_by_dion: rank must be 1 or more, got {rank}")
    who = "scale_by_dion"

    def first_basis(stack: jax.ShapeDtypeStruct) -> jax.Array:
        k, m, n = stack.shape
        chosen = jax.random.key(0) if key is None else key
        q = jax.random.normal(chosen, (m, min(rank, m, n)), stack.dtype)
        return links.settled(jnp.tile(q, (k, 1, 1)))

    read = functools.partial(trees.tensor_stacks, who, views=views, whole=over is None)

    def init(params: optax.Params) -> ScaleByDionState:
        wide = links.widen(params)
        stacks = jax.eval_shape(lambda t: links.spread_rows(read(t)[0], over), wide)
        # A leaf where there are no parameters: Optax asks in this way which parts of a
        # state are shaped like the parameters.
        basis = tuple(map(first_basis, stacks)) or jnp.zeros(())
        basis = basis if over is None else over.kept(basis)
        zeros = optax.tree.zeros_like(wide, dtype=accumulator_dtype)
        return ScaleByDionState(jnp.zeros((), jnp.int32), zeros, basis)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByDionState]:
        del params, extra_args
        if not jax.tree.leaves(updates):
            return updates, state
        wide = links.widen(updates)
        sums = jax.tree.map(lambda m, g: m.astype(g.dtype) + g, state.momentum, wide)
        stacks, restore = read(sums)
        results, basis = _power_steps(stacks, state.basis, eps, over)
        directions, used = zip(*results, strict=True)
        # Written so that the compiler, on Auto axes, leaves the momentum where it lies.
        stored = jax.tree.map(
            lambda m, g, u: (m.astype(g.dtype) + (g - (1 - b1) * u)).astype(m.dtype),
            state.momentum,
            wide,
            restore(used),
        )
        out = jax.tree.map(lambda o, u: o.astype(u.dtype), restore(directions), updates)
        return out, ScaleByDionState(
            jnp.asarray(optax.safe_increment(state.count)),
            stored,
            basis,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _power_steps(
    stacks: list[jax.Array], bases: Any, eps: float | jax.Array, over: Any
) -> tuple[list[Any], Any]:
    """Returns (direction, used part) of each stack, and the next bases."""

    def run(stacks: list[jax.Array], bases: Any) -> tuple[list[Any], Any]:
        done = [_power_step(x, q, eps) for x, q in zip(stacks, bases, strict=True)]
        return [both for *both, _ in done], tuple(q for *_, q in done)

    if over is not None:
        return over(run, stacks, bases, ranks=[[3, 3] for _ in stacks])
    results, bases = run(stacks, bases)
    return results, tuple(map(links.settled, bases))


def _power_step(
    x: jax.Array, q: jax.Array, eps: float | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the direction, the part of the momentum in it, and the next basis."""
    if not x.size:
        return x, x, q
    # The largest entry is divided out, or squares of 1e30 would overflow.
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    largest = jnp.where(largest == 0, 1.0, largest)
    y, basis = x / largest, q.astype(x.dtype)

    def product(indices: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(indices, a, b, precision="highest")

    p = jnp.linalg.qr(product("kmn,kmr->knr", y, basis)).Q
    r = product("kmn,knr->kmr", y, p)
    used = largest * product("kmr,knr->kmn", r, p)
    length = jnp.sqrt(jnp.sum(r * r, axis=-2, keepdims=True)) + eps / largest
    basis = r / jnp.where(length == 0, 1.0, length)
    factor = (x.shape[2] / x.shape[1]) ** 0.5
    return factor * product("kmr,knr->kmn", basis, p), used, basis.astype(q.dtype)


def dion(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    rest: optax.GradientTransformation | None = None,
    b1: float | jax.Array = 0.95,
    rank: int = 768,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.01,
    mask: Any = None,
    cautious: bool = False,
    min_norm: float | jax.Array | None = None,
    key: jax.Array | None = None,
    views: Any = trees.matrix_views,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Dion for the matrices of a model and another optimizer for the rest.

    Orthogonal updates without Newton-Schulz: a power iteration follows the r largest
    directions of the momentum, and what a step of rank r leaves out stays there for
    later ones. See `scale_by_dion`.

        w_t = w_{t-1} - eta_t (u_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta of the matrices: a number, a scalar array or a schedule;
        the authors' default is 0.01.
      rest: Transformation for all other leaves, its own learning rate included. None
        is allowed only when every leaf is a matrix.
      b1: Factor on the used part of the momentum, in [0, 1).
      rank: Number of directions; at most the shorter side of a matrix is taken.
      eps: Added to lengths, in units of the momentum.
      weight_decay: Decoupled decay of the matrices, multiplied by the learning rate.
      mask: Which matrices decay: tree of booleans or a function of the parameters.
      cautious: Whether decay acts only where it agrees with the update, see
        `links.add_decayed_weights`.
      min_norm: As in `muon`: 0 holds matrices with a gradient of zero.
      key: Random key of the first basis.
      views: As in `muon`.
      accumulator_dtype: Dtype of the momentum; None means float32 or wider.
      over: On a mesh, `sharding.spread(mesh, axes)`: each device works on matrices of
        its own and keeps their bases. None: all devices do all.

    Returns:
      A transformation; the rate in force is in its state, see
      `inspection.hyperparams`.

    Raises:
      ValueError: As `scale_by_dion`; if `rest` is missing and a leaf needs it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
      >>> state = optimizers.dion(0.01, rank=4, rest=optimizers.sgd(0.1)).init(params)
      >>> [x.shape for x in jax.tree.leaves(state) if x.ndim > 1]
      [(64, 32), (1, 64, 4)]

    Source:
      K. Ahn et al., "Dion: distributed orthonormalized updates", 2025,
      arXiv:2504.05295, and the authors' code (its simple version). Differs from the
      authors' code: all factors in float32; on a mesh whole
      matrices are sent, three times with `over`, and none of the communication is saved
      for which Dion was made.
    """

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        core = scale_by_dion(
            b1=b1,
            rank=rank,
            eps=eps,
            key=key,
            views=views,
            accumulator_dtype=accumulator_dtype,
            over=over,
        )
        return links.descend(
            links.hold_still(core, min_norm, views),
            learning_rate,
            weight_decay=weight_decay,
            mask=mask,
            cautious=cautious,
        )

    return links.matrices_and_rest(matrices, rest, views)
