"""Sparse fine-tuning: only the weights that are nearly zero are trained."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees

WHO = "sparse_finetuning"


class SparseFinetuningState(NamedTuple):
    """State of `sparse_finetuning`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      trained: Which entries are trained, shaped like the parameters, bool; none before
        the first update.
      key: Random key of the draws, shape (); None without lambda_rank.
      inner: State of the inner transformation, float32 or wider.
    """

    count: jax.Array
    trained: Any
    key: Any
    inner: Any


def sara_learning_rate(threshold: float | jax.Array) -> Any:
    """Returns the learning rate of the authors of SaRA, 0.001 exp(-350 threshold).

    Args:
      threshold: That of `sparse_finetuning`.

    Returns:
      The rate: the more weights are trained, the smaller.

    Example:
      >>> from optlab import wrappers
      >>> f"{wrappers.sara_learning_rate(2e-3):.6e}"
      '4.965853e-04'

    Source:
      The authors' code, see `sparse_finetuning`.
    """
    if isinstance(threshold, float | int):
        return 1e-3 * math.exp(-350 * threshold)
    return 1e-3 * jnp.exp(-350 * threshold)


def sparse_finetuning(
    inner: optax.GradientTransformation,
    threshold: float | jax.Array = 2e-3,
    *,
    progressive_iter: int | None = None,
    lambda_rank: float | jax.Array = 0.0,
    min_side: int = 64,
    views: Any = trees.matrix_views,
    orthogonalize: Callable[[jax.Array], jax.Array] | None = None,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Fine-tunes the weights that are nearly zero and freezes all others.

    In a pretrained model the smallest weights do the least. With M the entries
    |w_0| < threshold, 1 or 0, those alone are trained:

        u = M inner(M g + lambda_rank M U V^T)       U S V^T = w M of one matrix

    The second term is a subgradient of the nuclear norm, of which each step draws one
    matrix: it keeps the rank of what is trained low. After `progressive_iter` updates M
    is chosen once more, M <- M [|w| < threshold]: entries that have grown are done,
    those that have not learnt yet go on, with the averages that they have.

    Args:
      inner: The optimizer, with rate and decay, such as
        `optimizers.adamw(wrappers.sara_learning_rate(2e-3), weight_decay=1e-2)`. It
        sees gradients of zero where nothing is trained. One that mixes entries (Muon,
        a clipped norm) still moves trained entries only.
      threshold: Size below which a weight is trained, in units of the weights.
      progressive_iter: Updates before the second choice, 1 or more; None for no second
        one.
      lambda_rank: Factor on the second term. The number 0 leaves it out, and the key
        out of the state; an array of zero does not.
      min_side: Matrices with a side of this size or less are not drawn.
      views: Function to a tree of `trees.MatrixView`, or that tree: what is a matrix.
        Each matrix of a stack is drawn on its own.
      orthogonalize: Function (m, n) -> (m, n) for U V^T. None takes a singular value
        decomposition, without the directions of rank zero. On accelerators
        `functools.partial(kernels.newton_schulz, coefficients="accurate")` is much
        faster, and within 13 % of it in all directions above 0.00076 of the norm.
      key: Random key of the draws; None means `jax.random.key(0)`.

    Returns:
      A transformation that needs the parameters: those of the first update are the
      pretrained ones, so `init` works on shapes. Frozen entries keep their bits, in
      every dtype and under weight decay: their update is -0.0, which changes none.
      Updates keep their dtype. The state is the inner one and one byte an entry: the
      averages of frozen entries are zeros, but they are kept.

    Raises:
      TypeError: If inner is no transformation, or there are no parameters.
      ValueError: If a number is out of range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> w = jnp.array([5e-4, -1e-2, 1e-3])
      >>> tx = wrappers.sparse_finetuning(optax.sgd(0.1), 2e-3)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(w), w)
      >>> print(updates, state.trained)
      [-0.1 -0.  -0.1] [ True False  True]

    Source:
      T. Hu et al., "SaRA: high-efficient diffusion model fine-tuning with progressive
      sparse low-rank adaptation", 2024, arXiv:2409.06633, and the authors' code, of
      which the threshold, the rate and the second choice (as adamw2.py has it) are.
      Differs from the authors' code, which packs the trained entries, so that only
      they have averages; draws no matrix of 100 trained entries or fewer; and keeps
      directions of U V^T that a singular value of zero leaves undetermined. Its traps
      are not here: adamw.py has a threshold of 100 by default, for which the rate is 0;
      makes a new optimizer at the second choice and loses that update; leaves the
      second mask unset for the default progressive_iter=-1; and trains from the
      absolute values of the small weights in the first forward pass.
    """
    links.require_nonnegative(WHO, threshold=threshold, lambda_rank=lambda_rank)
    if progressive_iter is not None and progressive_iter < 1:
        raise ValueError(
            f"{WHO}: progressive_iter must be 1 or more, or None for no second choice;"
            f" got {progressive_iter}"
        )
    links.require_transformation(WHO, inner)
    inner = optax.with_extra_args_support(inner)
    ranked = not (isinstance(lambda_rank, float | int) and lambda_rank == 0)
    polar = _nuclear_subgradient if orthogonalize is None else orthogonalize

    def init(params: optax.Params) -> SparseFinetuningState:
        draws = None
        if ranked:
            # A new key: the state must not alias the caller's.
            draws = jax.random.split(jax.random.key(0) if key is None else key)[0]
        trained = jax.tree.map(lambda p: jnp.zeros_like(p, bool), params)
        count = jnp.zeros((), jnp.int32)
        return SparseFinetuningState(
            count, trained, draws, inner.init(links.widen(params))
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SparseFinetuningState]:
        links.require_params(WHO, params)
        weights, gradients = links.widen(params), links.widen(updates)
        trained = jax.lax.cond(
            jnp.isin(state.count, jnp.array([0, progressive_iter or 0])),
            lambda: _chosen(state.trained, weights, threshold, state.count == 0),
            lambda: state.trained,
        )
        if ranked:
            draw = jax.random.fold_in(state.key, state.count)
            pulls = _pull_on_one(trained, weights, views, min_side, polar, draw)
            gradients = jax.tree.map(
                lambda g, pull: g if pull is None else g + lambda_rank * pull,
                gradients,
                pulls,
            )
        gradients = _where(trained, gradients, 0.0)
        out, inner_state = inner.update(gradients, state.inner, weights, **extra_args)
        # Not 0.0: that would turn a -0.0 into it.
        out = jax.tree.map(
            lambda x, u: x.astype(u.dtype), _where(trained, out, -0.0), updates
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, SparseFinetuningState(count, trained, state.key, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _chosen(trained: Any, weights: Any, threshold: Any, first: jax.Array) -> Any:
    """Keeps what is still small; of all entries at first."""
    return jax.tree.map(
        lambda m, w: (m | first) & (jnp.abs(w) < threshold), trained, weights
    )


def _where(masks: Any, tree: Any, other: float) -> Any:
    return jax.tree.map(lambda m, x: jnp.where(m, x, other), masks, tree)


def _nuclear_subgradient(x: jax.Array) -> jax.Array:
    """Returns U V^T of a matrix, without directions whose singular value is zero."""
    left, sizes, right = jnp.linalg.svd(x, full_matrices=False)
    zero = max(x.shape) * jnp.finfo(x.dtype).eps * sizes[0]
    return jnp.matmul(left * (sizes > zero), right, precision="highest")


def _pull_on_one(
    trained: Any,
    weights: Any,
    views: Any,
    min_side: int,
    polar: Callable[..., Any],
    key: jax.Array,
) -> Any:
    """Draws a matrix: its U V^T, zeros for all others, None for what is never drawn."""
    found = views(weights) if callable(views) else views
    known = trees.views_by_path(weights, found)

    def sparse(path: Any, m: jax.Array, x: jax.Array) -> jax.Array | None:
        view = known.get(trees.path_string(path))
        if view is None or not x.size:
            return None
        sides = [
            math.prod(x.shape[a] for a in s) for s in (view.reduction, view.output)
        ]
        return jnp.where(m, x, 0) if min(sides) > min_side else None

    def drawn() -> Any:
        return jax.tree_util.tree_map_with_path(sparse, trained, weights)

    if not jax.tree.leaves(jax.eval_shape(drawn)):
        return jax.eval_shape(drawn)

    def read() -> Any:
        return trees.stacks_with_places(WHO, drawn(), found, whole=False)

    # Of these only the shapes are used: what is read is read where it is drawn.
    stacks, restore, places = read()
    # Matrices are counted shape by shape, so that all meshes draw the same.
    totals: dict[Any, int] = {}
    for stack in stacks:
        totals[stack.shape[1:]] = totals.get(stack.shape[1:], 0) + stack.shape[0]
    ends = itertools.accumulate(totals.values())
    begins = {s: end - totals[s] for s, end in zip(totals, ends, strict=True)}
    index = jax.random.randint(key, (), 0, sum(totals.values()))
    out = []
    for i, (stack, place) in enumerate(zip(stacks, places, strict=True)):
        hit = jnp.asarray(place + begins[stack.shape[1:]] == index)[:, None, None]
        pull = jax.lax.cond(
            jnp.any(hit),
            lambda i=i, hit=hit: _of_one(read()[0][i], hit, polar),
            lambda stack=stack: jnp.zeros(stack.shape[1:], stack.dtype),
        )
        out.append(jnp.where(hit, pull, jnp.zeros_like(stack)))
    return restore(out)


def _of_one(
    stack: jax.Array, hit: jax.Array, polar: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Takes the polar factor of the matrix that is hit, whole on every device."""
    (one,) = trees.gathered([jnp.sum(jnp.where(hit, stack, 0), 0)])
    return polar(one)
