"""Normalize-and-project: weight matrices keep the norm that they started with."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees

WHO = "normalize_and_project"


class NormalizeAndProjectState(NamedTuple):
    """State of `normalize_and_project`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      norms: Norm that each matrix keeps, in the order of leaves and of the matrices in
        them, shape (matrices,), float32 or wider; zeros before the first update.
    """

    count: jax.Array
    norms: jax.Array


def normalize_and_project(
    *, every: int = 1, views: Any = trees.matrix_views, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Brings each weight matrix back to its initial norm after the step.

    The last link of a chain, behind the learning rate: it looks at the weights as they
    will be, v = w + u. With rho the Frobenius norm of the initial weights,

        w <- rho v / ||v||_F              what leaves is the difference to w

    In a network with a normalisation before every nonlinearity the length of a weight
    matrix has no effect but on the size of a relative step: weights that grow train
    slower and slower. Here their length stays, and how much slower training gets is the
    schedule's choice alone. Leave weight decay off: on these weights it cancels.

    Args:
      every: The norm is restored by every so many updates.
      views: Function to a tree of `trees.MatrixView`, or that tree: which leaves are
        kernels. Each matrix of a stack has a norm of its own; leaves without a view
        (embeddings, heads, biases, scales) move freely.
      mask: Which leaves are looked at: tree of booleans or a function of the tree;
        None for all.

    Returns:
      A transformation that needs the parameters: those of the first update are the
      initial ones, so `init` works on shapes. It keeps one number a matrix; updates
      keep their dtype. A matrix that starts at zero has no length to keep and moves
      freely, as one does whose next weights are all zero. float32 weights keep their
      norm to 1e-6; to bfloat16 ones each entry is rounded after the projection, which
      holds the norm to 1 in 500, and a step below half a unit in the last place is
      lost: project a float32 copy.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If every is not a positive integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> w = {"kernel": jnp.array([[3.0, 4.0]])}
      >>> tx = optax.chain(optax.sgd(0.1), optimizers.normalize_and_project())
      >>> g = {"kernel": jnp.array([[10.0, 0.0]])}
      >>> updates, _ = tx.update(g, tx.init(w), w)
      >>> moved = optax.apply_updates(w, updates)["kernel"]  # (2, 4), of length 5
      >>> [f"{entry:.4f}" for entry in moved.ravel()]
      ['2.2361', '4.4721']

    Source:
      C. Lyle et al., "Normalization and effective learning rates in reinforcement
      learning", 2024, arXiv:2407.01800. UNVERIFIED: written after summaries of the
      paper and three public programs of others, which agree on W rho / ||W||; the
      authors' code was not found. What they do with biases, scales and offsets (drop
      them, or pull them to their initial values) is not known to us: nothing is done.
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"{WHO}: every must be an integer, 1 or more, got {every!r}")

    def init(params: optax.Params) -> NormalizeAndProjectState:
        leaves = jax.tree.leaves(params)
        total = sum(
            math.prod(x.shape[: x.ndim - len(over)])
            for x, over in zip(leaves, _matrix_axes(params, views), strict=True)
            if over is not None
        )
        dtype = jnp.result_type(jnp.float32, *(x.dtype for x in leaves))
        count = jnp.zeros((), jnp.int32)
        return NormalizeAndProjectState(count, jnp.zeros(total, dtype))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, NormalizeAndProjectState]:
        del extra_args
        links.require_params(WHO, params)
        axes = _matrix_axes(params, views)
        weights = jax.tree.leaves(links.widen(params))
        steps, structure = jax.tree.flatten(updates)
        norms = jax.lax.cond(
            state.count == 0,
            lambda: _listed(weights, axes, state.norms),
            lambda: state.norms,
        )
        norms = links.settled(norms)
        count = jnp.asarray(optax.safe_increment(state.count))

        def projected() -> list[jax.Array]:
            return _projected(steps, weights, axes, norms)

        if every == 1:
            steps = projected()
        else:
            steps = jax.lax.cond(count % every == 0, projected, lambda: steps)
        return structure.unflatten(steps), NormalizeAndProjectState(count, norms)

    link = optax.GradientTransformationExtraArgs(init, update)
    return link if mask is None else optax.masked(link, mask)


def _matrix_axes(tree: Any, views: Any) -> list[tuple[int, ...] | None]:
    """Lists the axes, from the end, that are rows and columns of each leaf."""
    found = links.channel_axes(WHO, tree, None, views)
    return [
        (*both[0], *both[1]) if both and leaf.size else None
        for leaf, both in zip(jax.tree.leaves(tree), found, strict=True)
    ]


def _listed(weights: list[jax.Array], axes: list[Any], like: jax.Array) -> jax.Array:
    """Measures the norms of all matrices, one after the other."""
    norms = links.reduce_alike(links.norm_over, weights, axes)
    norms = trees.gathered([x for x in norms if x is not None])
    return jnp.concatenate([like[:0], *(x.ravel().astype(like.dtype) for x in norms)])


def _projected(
    steps: list[jax.Array],
    weights: list[jax.Array],
    axes: list[Any],
    norms: jax.Array,
) -> list[jax.Array]:
    """Returns the steps to weights of these norms."""
    ends = [links.widen(u) + w for u, w in zip(steps, weights, strict=True)]
    lengths = links.reduce_alike(links.norm_over, ends, axes)
    out, start = [], 0
    for u, w, length in zip(steps, weights, lengths, strict=True):
        if length is None:
            out.append(u)
            continue
        rho = norms[start : start + length.size].reshape(length.shape)
        start += length.size
        # Weights at rest are not moved by rounding. And NaN, for which nothing of this
        # holds, passes, for whoever looks for it.
        off = jnp.abs(length - rho) > 8 * jnp.finfo(w.dtype).eps * rho
        kept = off & (rho > 0) & (length > 0)
        length = jnp.where(kept, length, 1)
        # Nearer to rho v / ||v|| - w than that itself: no difference of long vectors.
        moved = rho * (u / length) - (length - rho) / length * w
        out.append(jnp.where(kept, moved, u).astype(u.dtype))
    return out
