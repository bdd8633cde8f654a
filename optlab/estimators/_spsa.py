"""Gradients by differences of the loss alone, along random directions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import links, trees


class SpsaEstimate(NamedTuple):
    """What `spsa_value_and_grad` gives.

    Attributes:
      value: Mean of the losses on both sides, or with one side the loss at the
        parameters; shape ().
      grads: The estimate, shaped like the parameters.
      slopes: Slope of the loss along each direction, shape (samples,). With the key
        they are all of the estimate: see `spsa_gradient`.
    """

    value: jax.Array
    grads: Any
    slopes: jax.Array


def spsa_value_and_grad(
    loss: Callable[..., jax.Array],
    params: Any,
    key: jax.Array,
    *batch: Any,
    eps: float | jax.Array = 1e-3,
    num_samples: int = 1,
    antithetic: bool = True,
    distribution: str = "normal",
    compute_dtype: Any = None,
) -> SpsaEstimate:
    """Estimates a gradient from values of the loss, for any optimizer behind it.

    For losses that cannot be differentiated, or not within memory.

        z_i ~ N(0, 1) or +-1 for each entry
        c_i = (L(w + eps z_i) - L(w - eps z_i)) / (2 eps)      antithetic
        c_i = (L(w + eps z_i) - L(w)) / eps                    otherwise
        G   = mean_i c_i z_i

    Its mean is the gradient g, up to eps^2 (or eps), and its size that of one entry in
    d: E ||G||^2 / ||g||^2 = (d + 1) / n + 1 with normal entries and n samples. So it
    needs rates about n / d times those of gradients, and pays where the loss changes
    along few directions, as in fine-tuning.

    Parameters are never walked to and fro: both points are computed from them, in
    float32 where they are narrower. In bfloat16 100 such walks change weights by 2 to
    4 %, and most weights near 1 do not feel 0.001. The loss is given float32 copies,
    and returns float32. It must be the same function at all points: no dropout, or
    dropout with one key.

    A direction and a moved copy of the parameters are there at a time: more than
    backpropagation needs for short batches. Where layers are alike, `solvers.mezo`
    takes the same step in the memory of a few layers.

    Args:
      loss: From parameters and batch to a number.
      params: Tree of arrays of floats.
      key: Typed random key, a new one each step. Directions depend on it, on the order
        of the leaves and on their shapes: on a mesh every host draws the same ones.
      *batch: What the loss takes behind the parameters.
      eps: Distance of the points, in units of the parameters.
      num_samples: Directions n to average over, one after the other.
      antithetic: Whether to look to both sides of the parameters.
      distribution: 'normal' or 'rademacher'.
      compute_dtype: Dtype of the parameters that the loss sees; None for their own,
        or float32 where that is narrower.

    Returns:
      Loss, estimate in the dtypes of the parameters, and slopes.

    Raises:
      TypeError: If the key is not a typed one, a leaf is not of floats, or the loss is
        not one number in float32 or wider.
      ValueError: If eps is not above 0 or below the resolution of the dtype, there is
        no sample, or the distribution is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> loss = lambda x: jnp.sum(jnp.array([1.0, 10.0]) * x**2) / 2
      >>> found = estimators.spsa_value_and_grad(
      ...     loss, jnp.ones(2), jax.random.key(0), num_samples=4096)
      >>> [f"{entry:.1f}" for entry in found.grads]
      ['1.1', '10.1']

    Source:
      Spall, "Multivariate stochastic approximation using a simultaneous perturbation
      gradient approximation", 1992; Malladi et al., "Fine-tuning language models with
      just forward passes", 2023, arXiv:2305.17333. Differs from the authors' code,
      which walks in place, draws leaf after leaf from one seed, and reports the loss
      on one side.
    """
    who = "spsa_value_and_grad"
    links.require_key(who, key)
    links.require_positive(who, eps=eps)
    links.require_felt(who, params, eps, compute_dtype)
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(
            f"{who}: num_samples must be an integer of 1 or more, got {num_samples}"
        )

    def value_at(by: Any, z: Any) -> jax.Array:
        value = loss(shifted(params, z, by, compute_dtype=compute_dtype), *batch)
        links.require_precise_loss(who, value)
        return value

    def along(i: Any) -> Any:
        return direction_like(jax.random.fold_in(key, i), params, distribution)

    def both_sides(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = along(i)
        # One after the other, so that one copy of the parameters is enough.
        plus, minus = jax.lax.map(lambda by: value_at(by, z), jnp.array([eps, -eps]))
        return (plus - minus) / (2 * eps), (plus + minus) / 2

    samples = jnp.arange(num_samples)
    if antithetic:
        slopes, values = jax.lax.map(both_sides, samples)
        value = jnp.mean(values)
    else:
        value = value_at(0, jax.tree.map(jnp.zeros_like, links.widen(params)))
        beside = jax.lax.map(lambda i: value_at(eps, along(i)), samples)
        slopes = (beside - value) / eps
    grads = spsa_gradient(params, key, slopes, distribution=distribution)
    return SpsaEstimate(value, grads, slopes)


def spsa_gradient(
    params: Any, key: jax.Array, slopes: jax.Array, *, distribution: str = "normal"
) -> Any:
    """Makes the estimate of a step again, from its key and slopes.

        G = mean_i c_i z_i

    A log of these few numbers is a checkpoint of every step: whoever has the first
    parameters walks the whole way again, without the data and without a loss.

    Args:
      params: Tree of arrays; their shapes, dtypes and placement matter.
      key: The key that `spsa_value_and_grad` was given.
      slopes: What it found, shape (samples,).
      distribution: What it was given.

    Returns:
      Tree like the parameters.

    Raises:
      TypeError: If the key is not a typed one, or a leaf is not of floats.
      ValueError: If slopes are no vector, or the distribution is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> key, w = jax.random.key(0), jnp.ones(2)
      >>> found = estimators.spsa_value_and_grad(jnp.sum, w, key)
      >>> print(estimators.spsa_gradient(w, key, found.slopes) == found.grads)
      [ True  True]

    Source:
      Malladi et al., 2023, arXiv:2305.17333, section 2.1: storage of a run.
    """
    links.require_key("spsa_gradient", key)
    if jnp.ndim(slopes) != 1 or not jnp.size(slopes):
        raise ValueError(
            "spsa_gradient: slopes must have the shape (samples,), of one or more, got"
            f" {jnp.shape(slopes)}"
        )

    def one(i: Any) -> Any:
        z = direction_like(jax.random.fold_in(key, i), params, distribution)
        return jax.tree.map(lambda z: slopes[i] * z, z)

    def add(i: Any, total: Any) -> Any:
        return jax.tree.map(jnp.add, total, one(i))

    # Not from zero on: one sample takes no loop, and no room for a sum.
    count = jnp.shape(slopes)[0]
    total = jax.lax.fori_loop(1, count, add, one(0)) if count > 1 else one(0)
    return jax.tree.map(lambda t, p: (t / count).astype(p.dtype), total, params)


def direction_like(key: jax.Array, params: Any, distribution: str = "normal") -> Any:
    """Draws a random direction in the space of the parameters.

    Args:
      key: Typed random key. A leaf's entries depend on it, on the place of the leaf in
        the tree and on its shape, not on devices or placement.
      params: Tree of arrays of floats.
      distribution: 'normal' for N(0, 1), 'rademacher' for signs.

    Returns:
      Tree like the parameters, placed like them, in float32 or wider.

    Raises:
      TypeError: If a leaf is not of floats.
      ValueError: If the distribution is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> z = estimators.direction_like(jax.random.key(0), {"w": jnp.zeros(10_000)})
      >>> print(f"{z['w'].std():.2f}")
      1.01

    Source:
      Written for this library.
    """
    if distribution not in ("normal", "rademacher"):
        raise ValueError(
            "direction_like: distribution must be 'normal' or 'rademacher', got"
            f" {distribution!r}"
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)

    def draw(i: int, path: Any, x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"direction_like: leaf {trees.path_string(path)!r} is {x.dtype}; only"
                " floats have directions"
            )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        place = jax.typeof(x).sharding
        cut = place if any(place.spec) else None
        own = jax.random.fold_in(key, i)
        if distribution == "normal":
            return jax.random.normal(own, x.shape, wide, out_sharding=cut)
        signs = jax.random.rademacher(own, x.shape, jnp.int8, out_sharding=cut)
        return signs.astype(wide)

    return structure.unflatten(draw(i, *leaf) for i, leaf in enumerate(leaves))


def shifted(
    params: Any, direction: Any, by: float | jax.Array, *, compute_dtype: Any = None
) -> Any:
    """Computes the parameters beside the given ones, which stay as they are.

        w + by z,   summed in float32 or wider

    Args:
      params: Tree of arrays.
      direction: Tree z like it.
      by: How far, either way.
      compute_dtype: Dtype of the result; None for that of the sum.

    Returns:
      Tree like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> w = jnp.ones(1, jnp.bfloat16)
      >>> estimators.shifted(w, jnp.ones(1), 1e-3)
      Array([1.001], dtype=float32)

    Source:
      Written for this library.
    """

    def move(x: jax.Array, z: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return (x.astype(wide) + by * z).astype(compute_dtype or wide)

    return jax.tree.map(move, params, direction)
