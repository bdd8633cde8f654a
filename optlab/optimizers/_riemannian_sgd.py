"""Riemannian SGD: matrices whose columns stay orthonormal."""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees

# How a step leaves the tangent space, where the caller does not say.
_USUAL = {"grassmann": "exp", "stiefel": "qr"}


class RiemannianSgdState(NamedTuple):
    """State of what `riemannian_sgd` does with a step.

    Attributes:
      count: Updates applied so far, shape (), int32.
    """

    count: jax.Array


def riemannian_sgd(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    views: Any,
    rest: optax.GradientTransformation | None = None,
    manifold: str = "grassmann",
    retraction: str | None = None,
    momentum: float | jax.Array | None = None,
    dampening: float | jax.Array = 0.0,
    every: int = 5,
    over: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD for matrices with orthonormal columns, and another optimizer for the rest.

    For P of shape (n, k), n >= k, that stands for the subspace it spans (grassmann: a
    class as a subspace, principal components; a square one never moves) or for its
    columns (stiefel):

        P <- Q of QR(P), diag(R) > 0                      first, and every so often
        m_t = momentum m_{t-1} + (1 - dampening) g_t,   m_1 = g_1
        G = m_t - P P^T m_t                               grassmann
        G = m_t - P (P^T m_t + m_t^T P) / 2               stiefel
        P <- retraction of -eta_t G at P                  see `kernels.retract`

    Values are not checked: what is not orthonormal becomes so in the first update. Such
    a jump helps nobody, so start from `jax.nn.initializers.orthogonal()`. Parameters
    should be float32: in bfloat16 every entry is rounded to 1/256 of itself.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule. There is no
        decay: the size of P is fixed.
      views: Which leaves are meant, and how they are read. A regular expression is
        searched in the paths of leaves: the matrices that it finds have their longer
        side as n, square ones are left to the rest. Or a tree of `trees.MatrixView`,
        None for the rest, or a function from the parameters to it. The columns,
        `output`, are made orthonormal. `MatrixView((0,), (1,))` is for a leaf (n, k);
        where the rows are the basis, swap it: `MatrixView((1,), (0,))` for (k, n),
        `MatrixView((2,), (1,))` for a head (classes, k, n), and for one that is
        flattened to (classes * k, n) `MatrixView((1,), (0,), split=(k,) * classes)`.
      rest: Transformation for all other leaves, its own learning rate included, such as
        `adamw(3e-4)`. None is allowed only when every leaf has a view.
      manifold: 'grassmann' or 'stiefel', the latter with the Euclidean metric.
      retraction: 'exp' (Grassmann only), 'qr' or 'polar'; None means 'exp' for
        grassmann and 'qr' for stiefel. 'qr' is the fast one on accelerators.
      momentum: Decay of the sum, in [0, 1); None keeps no sum.
      dampening: Part of every gradient but the first that the sum leaves out.
      every: How many updates 'exp' runs between two such QR decompositions, which take
        out what rounding adds; the others need no more than the first.
      over: On a mesh, `sharding.spread(mesh, axes)`: each device moves matrices of its
        own. None: all devices do all.

    Returns:
      A transformation that needs the parameters and comes last. Sums are float32 or
      wider, updates keep their dtype; the rate in force is in the state, see
      `inspection.hyperparams`.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a name or number does not do; if a leaf that comes here has no
        view, is a vector, or has fewer rows than columns.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers, trees
      >>> tx = optimizers.riemannian_sgd(1.0, views=[trees.MatrixView((0,), (1,))])
      >>> p, g = [jnp.eye(3)[:, :1]], [jnp.array([[0.3], [0.4], [0.0]])]
      >>> updates, _ = tx.update(g, tx.init(p), p)
      >>> [f"{entry:.4f}" for entry in (p[0] + updates[0]).ravel()]  # cos, -sin of 0.4
      ['0.9211', '-0.3894', '0.0000']

    Source:
      H. Wang, Z. Li, W. Zhang, "Get the best of both worlds: improving accuracy and
      transferability by Grassmann class representation", 2023, arXiv:2308.01547, and
      the authors' code for grassmann with 'exp'. As there, the momentum is that of the
      space around, not transported along with P, and `every` is 5. Differs from the
      authors' code: signs of a QR decomposition are fixed, where theirs may turn
      columns under the momentum; it comes before a step, and before the first; their
      factor on the rate is part of the rate here. The other manifold and retractions:
      A. Edelman et al., 1998, and P.-A. Absil et al., 2008, see `kernels.retract`.
    """
    who = "riemannian_sgd"
    if manifold not in _USUAL:
        raise ValueError(
            f"{who}: manifold must be one of {kernels.MANIFOLDS}, got {manifold!r}"
        )
    retraction = retraction or _USUAL[manifold]
    allowed = [r for r in kernels.RETRACTIONS if (manifold, r) != ("stiefel", "exp")]
    if retraction not in allowed:
        raise ValueError(
            f"{who}: on {manifold} retraction must be one of {allowed}, got"
            f" {retraction!r}"
        )
    if isinstance(views, str):
        views = functools.partial(_found, who, re.compile(views))
    if int(every) != every or every < 1:
        raise ValueError(f"{who}: every must be at least 1, got {every}")

    def move(p: jax.Array, step: jax.Array, count: jax.Array) -> jax.Array:
        due = (count % every if retraction == "exp" else count) == 0
        # The condition is a scalar: most steps decompose nothing here.
        start = jax.lax.cond(due, kernels.orthonormalize, lambda x: x, p)
        step = kernels.tangent_part(start, step, manifold)
        return kernels.retract(start, step, str(retraction)) - p

    def matrices(views: Any) -> optax.GradientTransformationExtraArgs:
        return links.in_float32(
            optax.chain(
                links.add_dampened(who, momentum, dampening),
                links.scale_by_learning_rate(learning_rate),
                _on_manifold(who, move, views, over),
            )
        )

    return links.matrices_and_rest(matrices, rest, views)


def _on_manifold(
    who: str, move: Any, views: Any, over: Any
) -> optax.GradientTransformationExtraArgs:
    """Moves stacks of matrices by move(matrices, steps, updates so far)."""
    read = functools.partial(trees.tensor_stacks, who, views=views, whole=over is None)

    def init(params: optax.Params) -> RiemannianSgdState:
        _require_tall(who, params, views)
        return RiemannianSgdState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RiemannianSgdState]:
        del extra_args
        links.require_params(who, params)
        after = RiemannianSgdState(jnp.asarray(optax.safe_increment(state.count)))
        if not jax.tree.leaves(updates):
            return updates, after
        steps = jax.tree.map(lambda s, p: s.astype(p.dtype), updates, params)
        (steps, restore), (bases, _) = read(steps), read(params)

        def run(stacks: list[jax.Array], count: jax.Array) -> tuple[list[Any], Any]:
            pairs = zip(stacks[: len(bases)], stacks[len(bases) :], strict=True)
            moved = [move(p, s, count) if p.size else p for p, s in pairs]
            # Steps go there, and nothing of them comes back.
            return [*moved, *(None for _ in moved)], count

        stacks = [*bases, *steps]
        if over is None:
            moved, _ = run(stacks, state.count)
        else:
            ranks = [*(x.ndim for x in bases), *(None for _ in steps)]
            moved, _ = over(run, stacks, state.count, ranks=ranks)
        return restore(moved[: len(bases)]), after

    return optax.GradientTransformationExtraArgs(init, update)


def _found(who: str, pattern: re.Pattern, params: optax.Params) -> Any:
    """Reads the matrices whose paths are found, their longer sides as rows."""

    def view(path: Any, leaf: Any, usual: Any) -> Any:
        name, rank = trees.path_string(path), jnp.ndim(leaf)
        if not pattern.search(name):
            return None
        if rank < 2:
            raise ValueError(
                f"{who}: leaf {name!r} has shape {jnp.shape(leaf)}, a vector, and"
                f" {pattern.pattern!r} finds it; write one that finds matrices alone"
            )
        usual = usual or trees.MatrixView((rank - 2,), (rank - 1,))
        rows, columns = _sides(leaf, usual)
        if rows == columns:
            return None
        swapped = trees.MatrixView(usual.output, usual.reduction)
        return usual if rows > columns else swapped

    views = trees.matrix_views(params)
    return jax.tree_util.tree_map_with_path(view, params, views)


def _sides(leaf: Any, view: trees.MatrixView) -> tuple[int, ...]:
    shape = jnp.shape(leaf)
    return tuple(
        math.prod(shape[axis] for axis in part)
        for part in (view.reduction, view.output)
    )


def _require_tall(who: str, params: optax.Params, views: Any) -> None:
    """Raises with the first leaf whose columns cannot be orthonormal."""
    found = trees.leaf_views(who, params, views)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), view in zip(leaves, found, strict=True):
        shape, rank = jnp.shape(leaf), jnp.ndim(leaf)
        axes = {
            axis % rank for axis in view.reduction + view.output if -rank <= axis < rank
        }
        name = f"{who}: leaf {trees.path_string(path)!r} has shape {shape}"
        if len(axes) < len(view.reduction + view.output):
            raise ValueError(
                f"{name}, which {view} does not fit: a matrix needs rows and columns,"
                " each axis once. Give vectors the view None, and a rest="
            )
        rows, columns = _sides(leaf, view)
        if math.prod(shape) and rows < max(view.split or (columns,)):
            raise ValueError(
                f"{name} and is read as matrices of {rows} rows and"
                f" {max(view.split or (columns,))} columns, more than can be"
                " orthonormal. If the rows are the basis, swap the axes of the view:"
                f" MatrixView({view.output}, {view.reduction})"
            )
