"""Which weights a sparse estimate perturbs: ZO-GraSP scores, shares, random masks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import links, trees
from optlab.estimators import _spsa


def zo_grasp_scores(
    loss: Callable[[Any], jax.Array],
    params: Any,
    key: jax.Array,
    *,
    mu: float | jax.Array = 5e-2,
    samples: int = 192,
) -> Any:
    """Scores each weight by what its removal does to the gradient, without gradients.

    GraSP's score -w (H g) with gradient and product from q random directions, the same
    in both. With z normal and each leaf of u of length one,

        u_l  = z_l / ||z_l||
        g(w) = 1/q sum_u (L(w + mu u) - L(w)) / mu  u
        s    = -w (g(w + h g(w)) - g(w)) / h,   h = mu / ||g(w)||     entry by entry

    Its use is `layerwise_sparsity`. A single score is mostly noise, since q directions
    see a share of q / d of d entries: on 3,400 weights 192 directions give a cosine of
    0.3 with -w H g. What the loss is rounded by is divided by mu^2.

    Args:
      loss: From parameters to a number, float32 or wider, on a batch with as many
        examples of each class. It gets half-precision parameters in float32.
      params: Tree of floating arrays.
      key: Typed random key.
      mu: How far each leaf is moved, above 0, in units of the parameters.
      samples: Number q of directions.

    Returns:
      Tree like the parameters, float32 or wider, from 2 (q + 1) evaluations, one at a
      time.

    Raises:
      ValueError: If mu is not above 0 or samples below 1.
      TypeError: If the key is not a typed one, a leaf is not of floats, or the loss is
        not one number in float32 or wider.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> curvature = jnp.array([0.0, 1.0, 10.0])
      >>> scores = estimators.zo_grasp_scores(
      ...     lambda w: jnp.sum(curvature * w**2) / 2, jnp.ones(3), jax.random.key(0),
      ...     samples=2000)
      >>> print(jnp.argsort(jnp.abs(scores)))
      [0 1 2]

    Source:
      A. Chen et al., "DeepZero: scaling up zeroth-order optimization for deep model
      training", 2023, arXiv:2310.02025, ZO-GraSP, as in the authors' code; UNVERIFIED
      against the paper's own equations. As there, g lacks the factor d of an estimate:
      it is about 1 / d_l of the gradient in a leaf of d_l entries, so that large leaves
      get small scores. Differs from the code in what makes the difference of the two g
      more than noise: the same directions in both, where theirs draws others; and a
      second step of length mu, where theirs has mu ||g||, which float32 rounds off.
      Its mu is 0.005.
    """
    who = "zo_grasp_scores"
    links.require_key(who, key)
    links.require_positive(who, mu=mu)
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(
            f"{who}: samples must be an integer of 1 or more, got {samples!r}"
        )
    w = links.widen(params)
    g = _along_random_directions(loss, w, key, mu, samples)
    length = links.tree_norm(g)
    step = mu / jnp.where(length == 0, 1, length)
    there = _spsa.shifted(w, g, step)
    after = _along_random_directions(loss, there, key, mu, samples)
    return jax.tree.map(lambda x, a, b: -x * ((b - a) / step), w, g, after)


def layerwise_sparsity(scores: Any, sparsity: float, *, mask: Any = None) -> Any:
    """Tells which share of each leaf goes when the least of all scores go together.

    Of all entries that compete, the given share with the least |score| is counted in
    each leaf. The shares are kept for a run, the masks are drawn anew every few epochs,
    with `random_masks`:

        scores = estimators.zo_grasp_scores(loss, params, key)
        shares = estimators.layerwise_sparsity(scores, 0.9)
        masks = estimators.random_masks(random.fold_in(key, epoch), params, shares)
        found = estimators.coordinatewise_value_and_grad(loss, params, mask=masks)

    Only the estimate is sparse: weights outside of the mask are at rest, not zero. In
    our runs on a small network the shares were those of w times noise / sqrt(d_l), with
    these scores as with the authors': it is sizes of leaves and of weights that speak.

    Args:
      scores: Tree of floating arrays; not traced, since what comes out decides how much
        is computed.
      sparsity: Share of the competing entries that go, in [0, 1].
      mask: Which leaves compete: tree of booleans, one a leaf, or a function of the
        scores; None for those of two axes or more.

    Returns:
      Tree with a number in [0, 1] for each leaf, 0 for those that do not compete.

    Raises:
      ValueError: If sparsity is out of range, a score is not finite, or the mask has
        another structure than the scores.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> scores = {"a": jnp.array([[5.0, -4.0]]), "b": jnp.array([[0.1, 2.0, 1.0]])}
      >>> estimators.layerwise_sparsity(scores, 0.4)
      {'a': 0.0, 'b': 0.6666666666666666}

    Source:
      A. Chen et al., 2023, arXiv:2310.02025, and the authors' code.
    """
    who = "layerwise_sparsity"
    _require_share(who, "sparsity", sparsity)
    if mask is None:
        mask = jax.tree.map(lambda x: jnp.ndim(x) > 1, scores)
    elif callable(mask):
        mask = mask(scores)
    paths, structure = jax.tree.flatten_with_path(scores)
    chosen = _leaves_of(who, "mask", mask, structure)
    flat = []
    for (path, x), competes in zip(paths, chosen, strict=True):
        sizes = np.abs(np.asarray(x, np.float64)).ravel() if competes else np.zeros(0)
        if not np.isfinite(sizes).all():
            raise ValueError(
                f"{who}: leaf '{trees.path_string(path)}' has scores that are not"
                " finite"
            )
        flat.append(sizes)
    joined = np.concatenate([np.zeros(0), *flat])
    goes = np.zeros(joined.size, bool)
    # Among equal scores the first ones go.
    goes[np.argsort(joined, kind="stable")[: round(sparsity * joined.size)]] = True
    parts = np.split(goes, np.cumsum([x.size for x in flat])[:-1]) if flat else []
    return structure.unflatten(float(x.mean()) if x.size else 0.0 for x in parts)


def random_masks(key: jax.Array, params: Any, sparsity: Any) -> Any:
    """Draws the entries that a sparse estimate perturbs, so many of each leaf.

    Args:
      key: Typed random key, a new one for each mask.
      params: Tree of arrays.
      sparsity: Tree of numbers in [0, 1], the share of each leaf that is left out; of n
        entries n - round(share n) are drawn, each set of them as likely as any other.

    Returns:
      Tree of boolean arrays like the parameters. They depend on the key and on the
      order and the shapes of the leaves, not on the placement. Call it outside of
      `jax.jit`, or as a function of the key alone: the estimators need masks that are
      not traced.

    Raises:
      ValueError: If a share is out of range, or shares and parameters differ in
        structure.
      TypeError: If the key is not a typed one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> masks = estimators.random_masks(
      ...     jax.random.key(0), {"w": jnp.ones((10, 10))}, {"w": 0.9})
      >>> print(masks["w"].sum())
      10

    Source:
      A. Chen et al., 2023, arXiv:2310.02025, and the authors' code.
    """
    who = "random_masks"
    links.require_key(who, key)
    paths, structure = jax.tree.flatten_with_path(params)
    shares = _leaves_of(who, "sparsity", sparsity, structure)
    masks = []
    for number, ((path, x), share) in enumerate(zip(paths, shares, strict=True)):
        _require_share(who, f"sparsity of leaf '{trees.path_string(path)}'", share)
        size = int(np.prod(jnp.shape(x)))
        ranks = jax.random.permutation(jax.random.fold_in(key, number), size)
        kept = ranks >= round(float(share) * size)
        masks.append(kept.reshape(jnp.shape(x)))
    return structure.unflatten(masks)


def _along_random_directions(
    loss: Callable[[Any], jax.Array],
    params: Any,
    key: jax.Array,
    mu: float | jax.Array,
    samples: int,
) -> Any:
    """Averages forward differences along directions whose leaves have length one."""
    value = loss(params)
    links.require_precise_loss("zo_grasp_scores", value)

    def add(total: Any, sample: jax.Array) -> tuple[Any, None]:
        z = _spsa.direction_like(jax.random.fold_in(key, sample), params)
        u = jax.tree.map(_unit, z)
        slope = (loss(_spsa.shifted(params, u, mu)) - value) / mu
        return jax.tree.map(
            lambda a, one: a + (slope / samples * one).astype(a.dtype), total, u
        ), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, jnp.arange(samples))[0]


def _unit(z: jax.Array) -> jax.Array:
    length = jnp.sqrt(jnp.sum(z * z))
    return z / jnp.where(length == 0, 1, length)


def _leaves_of(who: str, name: str, tree: Any, structure: Any) -> list[Any]:
    if jax.tree.structure(tree) != structure:
        raise ValueError(
            f"{who}: {name} has one entry for each leaf, in the structure {structure};"
            f" got {jax.tree.structure(tree)}"
        )
    return jax.tree.leaves(tree)


def _require_share(who: str, name: str, share: Any) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{who}: {name} must be from 0 to 1, got {share}")
