"""Gradients taken beside the parameters: sharpness-aware, along momentum, by noise."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees


class PerturbedEstimate(NamedTuple):
    """What `perturbed_value_and_grad` gives.

    Attributes:
      value: The loss at the perturbed point, shape ().
      grads: Its gradient there, shaped like the parameters, to be applied to them.
      aux: What else the loss returned there; None without `has_aux`.
    """

    value: jax.Array
    grads: Any
    aux: Any


class SharpnessEstimate(NamedTuple):
    """What `sharpness_aware_value_and_grad` gives.

    Attributes:
      value: The loss at the parameters, shape ().
      grads: Its gradient at the perturbed point, shaped like the parameters, to be
        applied to them.
      perturbed_value: The loss at the perturbed point, shape (); less the value it is
        the sharpness.
      aux: What else the loss returned at the parameters, such as batch statistics;
        None without `has_aux`. With groups a leading axis counts them.
    """

    value: jax.Array
    grads: Any
    perturbed_value: jax.Array
    aux: Any


def perturbed_value_and_grad(
    loss: Callable[[Any], Any],
    params: Any,
    perturb: Callable[[Any], Any],
    *,
    has_aux: bool = False,
) -> PerturbedEstimate:
    """Differentiates a loss at a point beside the parameters.

    Steps with such gradients look for parameters whose neighbours are good too.

        e = perturb(w)
        g = grad loss(w + e),   applied to w

    The perturbation is no state: what it is drawn or computed from, a key or a
    momentum, is the caller's, and it is gone when the gradient is there. It is not
    differentiated. Sums are rounded to the dtype of the parameters: in bfloat16 an
    entry does not feel less than 1/512 of itself, so keep float32 parameters where the
    radius is small, and let the loss cast them.

    Args:
      loss: From parameters to a number, on the batch of this step.
      params: Tree of arrays.
      perturb: From parameters to a tree like them: `perturbation_along` a gradient or
        momentum, `perturbation_by_rows`, or a function of your own.
      has_aux: Whether the loss returns a pair, of the number and anything.

    Returns:
      Loss and gradient at the perturbed point; one forward and one backward pass.

    Raises:
      ValueError: If the perturbation is no tree like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> momentum, w = jnp.array([3.0, 4.0]), jnp.array([1.0, 1.0])
      >>> found = estimators.perturbed_value_and_grad(
      ...     lambda w: jnp.sum(w**2) / 2, w,
      ...     lambda w: estimators.perturbation_along(momentum, 0.5))
      >>> print(found.grads)
      [1.3 1.4]

    Source:
      Written for this library.
    """
    e = perturb(params)
    _require_alike(params, e)
    beside = jax.tree.map(_rounded_sum, params, e)
    out, grads = jax.value_and_grad(loss, has_aux=has_aux)(beside)
    value, aux = out if has_aux else (out, None)
    return PerturbedEstimate(value, grads, aux)


def perturbation_along(
    direction: Any, rho: float | jax.Array, *, scale: Any = None
) -> Any:
    """Makes the perturbation of a given length along a direction.

        e = rho s (s d) / ||s d||                     norm over the whole tree

    Along the gradient it is that of sharpness-aware minimization; along a momentum it
    saves the first of the two passes, since the momentum is there already.

    Args:
      direction: Tree d of arrays.
      rho: Length of the perturbation, 0 or more, in units of the parameters.
      scale: Tree s like d, of units for each entry; None for 1.

    Returns:
      Tree like d, float32 or wider. It is zero where there is no direction: if d is
      zero, or an entry of it not finite. Along 1e-30 and 1e30 it has its length.

    Raises:
      ValueError: If rho is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> d = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> e = estimators.perturbation_along(d, 0.5)
      >>> print(e["a"], e["b"])
      [0.3] [0.4]

    Source:
      Foret et al., 2020, arXiv:2010.01412. Differs from the authors' code, which
      divides by the bare norm: zero gives zero here, not NaN.
    """
    links.require_nonnegative("perturbation_along", rho=rho)
    d = links.widen(direction)
    if scale is not None:
        scale = links.widen(scale)
        d = jax.tree.map(jnp.multiply, scale, d)
    # In units of the largest entry, so that no square is lost or too large.
    peaks = [jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(d)]
    largest = jnp.asarray(jax.tree.reduce(jnp.maximum, peaks, 0.0), float)
    known = (largest >= jnp.finfo(jnp.float32).tiny) & jnp.isfinite(largest)
    unit = jax.tree.map(
        lambda x: jnp.where(known, x / jnp.where(known, largest, 1), 0), d
    )
    length = jnp.where(known, optax.tree.norm(unit), 1)
    e = jax.tree.map(lambda x: rho / length * x, unit)
    return e if scale is None else jax.tree.map(jnp.multiply, scale, e)


def perturbation_by_rows(
    key: jax.Array,
    params: Any,
    sigma: float | jax.Array,
    *,
    views: Any = trees.matrix_views,
) -> Any:
    """Draws noise for matrices that is as large as their rows are.

    A row holds the n weights into one output, which is a column of a Flax kernel:

        e_i ~ N(0, sigma^2 ||w_row||^2 / n)

    so that the perturbation of a row has sigma times its length, and what is scaled by
    a norm behind it is perturbed alike at any scale. For a low-rank adapter, draw it
    for the merged weight, `w + a @ b`, and add it to `w` in the loss of a and b.

    Args:
      key: Random key, a new one for each step; one key gives the same noise on every
        device and placement.
      params: Tree of arrays.
      sigma: Size of the noise relative to the row, 0 or more.
      views: Tree of `trees.MatrixView` or the function that finds it; leaves without
        one are not perturbed.

    Returns:
      Tree like the parameters, float32 or wider.

    Raises:
      ValueError: If sigma is negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> w = {"kernel": jnp.ones((10_000, 2)) * jnp.array([1.0, 4.0])}
      >>> e = estimators.perturbation_by_rows(jax.random.key(0), w, 0.1)
      >>> [f"{spread:.2f}" for spread in jnp.std(e["kernel"], axis=0)]
      ['0.10', '0.40']

    Source:
      Written for this library. Published methods for adapters also weigh the noise by
      norms of gradients; their formulas could not be verified and are not here.
    """
    links.require_nonnegative("perturbation_by_rows", sigma=sigma)
    known = trees.views_by_path(params, views)
    leaves = jax.tree_util.tree_leaves_with_path(links.widen(params))
    keys = jax.random.split(key, max(len(leaves), 1))

    def draw(path: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        view = known.get(trees.path_string(path))
        if view is None or not x.size:
            return jnp.zeros_like(x)
        n = math.prod(x.shape[axis] for axis in view.reduction)
        spread = sigma / math.sqrt(n) * links.norm_over(x, view.reduction)
        return spread * jax.random.normal(key, x.shape, x.dtype)

    noise = [draw(*leaf, key) for leaf, key in zip(leaves, keys, strict=False)]
    return jax.tree.unflatten(jax.tree.structure(params), noise)


def sharpness_aware_value_and_grad(
    loss: Callable[..., Any],
    params: Any,
    *batch: Any,
    rho: float | jax.Array = 0.05,
    adaptive: bool = False,
    groups: int = 1,
    has_aux: bool = False,
) -> SharpnessEstimate:
    """Differentiates a loss where it is nearly highest within a radius.

        g = grad loss(w),   e = rho g / ||g||         norm over the whole tree
        g_s = grad loss(w + e)                        on the same batch

    Adaptive, the radius of each weight is in units of that weight:

        e = rho w^2 g / || |w| g ||

    With groups the batch is cut into that many, each climbs by its own gradient, and
    the mean of their gradients is returned: sharpness of m = batch / groups examples.
    The authors saw small groups generalise better. Groups are computed together, each
    with its own perturbed copy of the parameters; with the batch cut over as many
    devices each device has its own group, and no device waits between the two passes.
    To compute one after the other, call this for each and take the mean of `grads`.

    Args:
      loss: From parameters and batch to a number. If it draws, as dropout does, let it
        draw alike in both passes.
      params: Tree of arrays.
      *batch: Further arguments of the loss; with groups, trees of arrays whose first
        axis counts examples, of which the loss is the mean.
      rho: Radius, 0 or more; 0 gives the plain gradient.
      adaptive: Whether the radius is in units of each weight; it is then near 0.5.
      groups: Into how many the batch is cut, a divisor of its size.
      has_aux: Whether the loss returns a pair, of the number and anything.

    Returns:
      Loss, gradient at the perturbed point, and the loss there. Norms are float32 or
      wider, gradients have the dtype of the parameters. Costs two gradients. A gradient
      that is zero or not finite is returned as it is.

    Raises:
      ValueError: If rho is negative, groups is no positive integer or does not divide
        the batch, or there are groups and no batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> loss = lambda w: 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)
      >>> found = estimators.sharpness_aware_value_and_grad(loss, jnp.ones(2), rho=0.1)
      >>> [f"{entry:.4f}" for entry in found.grads]
      ['1.0100', '10.9950']

    Source:
      Foret et al., "Sharpness-aware minimization for efficiently improving
      generalization", 2020, arXiv:2010.01412. Differs from the authors' code: a zero
      gradient is no NaN, and the perturbation is one for the whole batch unless groups
      are asked for (theirs: one for each device). Adaptive: Kwon et al., "ASAM", 2021,
      arXiv:2102.11600, UNVERIFIED against the authors' code; the numbers agree with
      those of a widely used second source.
    """
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(
            "sharpness_aware_value_and_grad: groups must be an integer of 1 or more,"
            f" got {groups}"
        )

    def estimate(*batch: Any) -> SharpnessEstimate:
        def here(params: Any) -> Any:
            return loss(params, *batch)

        out, grads = jax.value_and_grad(here, has_aux=has_aux)(params)
        value, aux = out if has_aux else (out, None)
        scale = jax.tree.map(jnp.abs, params) if adaptive else None
        there = perturbed_value_and_grad(
            here,
            params,
            lambda _: perturbation_along(grads, rho, scale=scale),
            has_aux=has_aux,
        )
        return SharpnessEstimate(value, there.grads, there.value, aux)

    if groups == 1:
        return estimate(*batch)
    each = jax.vmap(estimate)(*_grouped(batch, groups))
    value, grads, perturbed = jax.tree.map(_mean, each[:3])
    return SharpnessEstimate(value, grads, perturbed, each.aux)


def _rounded_sum(x: jax.Array, e: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) + e).astype(x.dtype)


def _mean(x: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x.astype(wide), axis=0).astype(x.dtype)


def _require_alike(params: Any, e: Any) -> None:
    """Raises unless a perturbation has the structure and shapes of the parameters."""
    wanted, got = (
        {trees.path_string(p): jnp.shape(x) for p, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (params, e))
    )
    for name in {**wanted, **got}:
        if wanted.get(name) != got.get(name):
            raise ValueError(
                f"perturbed_value_and_grad: leaf {name!r} has shape"
                f" {wanted.get(name, 'none')} in the parameters and"
                f" {got.get(name, 'none')} in the perturbation; perturb returns a tree"
                " like the parameters"
            )


def _grouped(batch: Any, groups: int) -> Any:
    """Cuts the first axis of each leaf: (groups, batch / groups, ...)."""
    who = "sharpness_aware_value_and_grad: groups"
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(
            f"{who}={groups} cut the batch, and there is none; pass it behind the"
            " parameters, to a loss of parameters and batch"
        )
    for path, x in leaves:
        if not jnp.ndim(x) or jnp.shape(x)[0] % groups:
            raise ValueError(
                f"{who}={groups} do not divide the first axis of batch leaf"
                f" {trees.path_string(path)!r} of shape {jnp.shape(x)}"
            )
    return jax.tree.map(
        lambda x: jnp.reshape(x, (groups, x.shape[0] // groups, *x.shape[1:])), batch
    )
