"""Coordinate-wise clipping: the largest entries come down to the next one."""

import fractions
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import links, trees

WHO = "clip_coordinates"
SCOPES = ("leaf", "tree")
# Entries of a leaf are counted in 32 bits.
MOST = 2**32 - 1


def clip_coordinates(
    fraction: float | None = None,
    *,
    threshold: float | jax.Array | None = None,
    per: str = "leaf",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clips the largest entries, a given share of them, to the largest one below.

    With d entries of a leaf, of which k = floor(fraction d) are to be clipped,

        tau = the (k + 1)-th largest |x|
        x_i <- sign(x_i) min(|x_i|, tau)

    so that k entries change, fewer if some are as large as the next one. Few directions
    of large curvature then do not set the pace of all others. There are two places for
    it: before the momentum (the gradient is clipped), or behind everything (the update
    is), as the example has them.

    tau is found exactly and without sorting: |x| is read as an integer, of which 32
    counts over the entries settle one bit after the other. On a mesh all that travels
    are these counts.

    Args:
      fraction: Share of entries to clip, in [0, 1); 0 is the identity. 0.1 if no
        threshold is given either.
      threshold: Fixed tau in place of it, above 0.
      per: 'leaf' for a threshold of each leaf, 'tree' for one of all.
      mask: Which leaves are clipped: tree of booleans or a function of the tree; None
        for all.

    Returns:
      A transformation without state; updates keep their dtype. NaN stays and counts
      among the largest entries, as infinity does, which is clipped. Where most entries
      are zero, as in the gradient of an embedding of which few rows were read, tau is
      small or zero and little of the leaf is left: mask it.

    Raises:
      ValueError: If fraction or threshold is out of range, or both are given, or a leaf
        has 2^32 entries or more.
      TypeError: If fraction is no number: it decides how many entries are counted.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> clip = optimizers.clip_coordinates(0.2)
      >>> sgd = optax.sgd(1.0, momentum=0.9)
      >>> g = jnp.array([0.1, -5.0, 0.3, -0.2, 2.0])
      >>> for tx in (optax.chain(clip, sgd), optax.chain(sgd, clip)):
      ...     _, state = tx.update(g, tx.init(g))
      ...     print([f"{u:.1f}" for u in tx.update(-g[::-1], state)[0]])
      ['1.9', '1.6', '0.0', '-1.8', '-1.7']
      ['1.9', '4.3', '0.0', '-4.3', '-1.7']

    Source:
      Y. Pan, Y. Li, "Toward understanding why Adam converges faster than SGD for
      transformers", 2023, arXiv:2306.00204. UNVERIFIED: the idea is theirs; which of
      the two places, which share, and whether of a leaf or of all, we do not know.
      Differs from `optax.clip`, which knows a fixed threshold only.
    """
    share = _checked(fraction, threshold, per)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        leaves, structure = jax.tree.flatten(updates)
        if threshold is not None:
            limits: list[Any] = [threshold] * len(leaves)
        elif per == "tree":
            limits = _limits_of_tree(updates, share)
        else:
            limits = _limits_of_leaves(updates, share)
        return structure.unflatten(map(_clipped, leaves, limits)), state

    link = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    return link if mask is None else optax.masked(link, mask)


def _checked(fraction: Any, threshold: Any, per: str) -> fractions.Fraction:
    """Returns the share as it is written: 0.29 of 100 entries are 29, not 28."""
    if per not in SCOPES:
        raise ValueError(f"{WHO}: per must be one of {SCOPES}, got {per!r}")
    if threshold is not None:
        if fraction is not None:
            raise ValueError(f"{WHO}: give a fraction or a threshold, not both")
        if isinstance(threshold, float | int) and not threshold > 0:
            raise ValueError(f"{WHO}: threshold must be above 0, got {threshold}")
        return fractions.Fraction(0)
    fraction = 0.1 if fraction is None else fraction
    if not isinstance(fraction, float | int | np.floating):
        raise TypeError(
            f"{WHO}: fraction must be a number, for it decides how many entries are"
            f" counted; got {fraction!r}. With optax.inject_hyperparams list it in"
            " static_args"
        )
    if not 0 <= fraction < 1:
        raise ValueError(
            f"{WHO}: fraction must be at least 0 and below 1, got {fraction}"
        )
    return fractions.Fraction(repr(float(fraction)))


def _clipped(x: jax.Array, limit: Any) -> jax.Array:
    if limit is None:
        return x
    wide = links.widen(x)
    # Not the smaller of the two: NaN passes, for whoever looks for it.
    clipped = jnp.where(jnp.abs(wide) > limit, jnp.copysign(limit, wide), wide)
    return clipped.astype(x.dtype)


def _limits_of_leaves(tree: Any, share: fractions.Fraction) -> list[Any]:
    """Finds the threshold of each leaf, None for one of which nothing is clipped."""
    leaves = jax.tree.leaves(tree)
    most = [int(share * x.size) for x in leaves]
    groups = _alike([x if k else None for x, k in zip(leaves, most, strict=True)])
    stacks = _patterns(tree, groups)

    def enough(tried: list[jax.Array]) -> list[jax.Array]:
        return [
            _counts(x, t) > most[group[0]]
            for x, t, group in zip(stacks, tried, groups, strict=True)
        ]

    found = _largest(enough, [jnp.zeros(x.shape[:1], x.dtype) for x in stacks])
    limits: list[Any] = [None] * len(leaves)
    for group, limit in zip(groups, found, strict=True):
        for place, index in enumerate(group):
            limits[index] = limit[place]
    return limits


def _limits_of_tree(tree: Any, share: fractions.Fraction) -> list[Any]:
    """Finds the threshold of all leaves together."""
    leaves = jax.tree.leaves(tree)
    most = int(share * sum(x.size for x in leaves))
    if not most:
        return [None] * len(leaves)
    stacks = _patterns(tree, _alike([x if x.size else None for x in leaves]))

    def enough(tried: list[jax.Array]) -> list[jax.Array]:
        counts = [_counts(x, tried[0]) for x in stacks]
        return [_more_than(most, jnp.concatenate(counts))]

    return _largest(enough, [jnp.zeros((), stacks[0].dtype)]) * len(leaves)


def _more_than(most: int, counts: jax.Array) -> jax.Array:
    """Tells whether counts add up to more than a number, which may have 48 bits."""
    high, low = (jnp.sum(x, dtype=jnp.uint32) for x in (counts >> 16, counts & 0xFFFF))
    high, low = high + (low >> 16), low & 0xFFFF
    return (high > most >> 16) | ((high == most >> 16) & (low > (most & 0xFFFF)))


def _alike(leaves: list[Any]) -> list[list[int]]:
    """Groups leaves of one kind: on a mesh their counts travel in one piece."""
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        if leaf is not None:
            groups.setdefault(jax.typeof(leaf), []).append(index)
    return list(groups.values())


def _patterns(tree: Any, groups: list[list[int]]) -> list[jax.Array]:
    """Reads |x| as integers, which are in the order of the numbers, NaN the last."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, x in leaves:
        if x.size > MOST:
            raise ValueError(
                f"{WHO}: leaf {trees.path_string(path)!r} has {x.size} entries, more"
                f" than the {MOST} that can be counted; give a threshold, or mask it"
            )
    stacks = [jnp.stack([leaves[index][1] for index in group]) for group in groups]
    wide = jnp.result_type(jnp.float32, *(x.dtype for x in stacks))
    words = jnp.dtype(f"uint{8 * wide.itemsize}")
    return [
        jax.lax.bitcast_convert_type(jnp.abs(x.astype(wide)), words) for x in stacks
    ]


def _counts(x: jax.Array, least: jax.Array) -> jax.Array:
    """Counts, in each row of a stack, the entries from a pattern on."""
    least = least.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sum(x >= least, tuple(range(1, x.ndim)), dtype=jnp.uint32)


def _largest(
    enough: Callable[[list[jax.Array]], list[jax.Array]], start: list[jax.Array]
) -> list[jax.Array]:
    """Finds the largest patterns of which `enough` holds, and returns their numbers."""
    if not start:
        return []
    words = start[0].dtype
    bits = 8 * words.itemsize

    def body(i: jax.Array, found: list[jax.Array]) -> list[jax.Array]:
        bit = jnp.left_shift(jnp.ones((), words), (bits - 2 - i).astype(words))
        tried = [t | bit for t in found]
        return [
            jnp.where(yes, new, old)
            for yes, new, old in zip(enough(tried), tried, found, strict=True)
        ]

    found = jax.lax.fori_loop(0, bits - 1, body, start)
    return [jax.lax.bitcast_convert_type(t, jnp.dtype(f"float{bits}")) for t in found]
