"""How much the gradients of single examples differ from their mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import links, trees

ExampleLoss = Callable[[Any, Any], jax.Array]


class GradientMoments(NamedTuple):
    """Mean and spread of the gradients added so far; float32 or wider.

    Attributes:
      count: How many gradients k there are, shape (), int32.
      mean: Their mean, shaped like the parameters.
      spread: Sum of the squared distances from the mean over the whole tree, shape ().
    """

    count: jax.Array
    mean: Any
    spread: jax.Array

    @property
    def squared_norm(self) -> jax.Array:
        """Squared norm of the mean over the whole tree, shape ()."""
        return links.inner_product(self.mean, self.mean)

    @property
    def variance(self) -> jax.Array:
        """Trace of the covariance, spread / (k - 1), shape (); NaN below two."""
        known = self.spread / jnp.maximum(self.count - 1, 1)
        return jnp.where(self.count > 1, known, jnp.nan)


class GradientStatistics(NamedTuple):
    """What `gradient_statistics` gives; numbers of shape (), float32 or wider.

    Attributes:
      value: Mean loss of the examples.
      grads: Mean gradient, in the dtypes of the parameters.
      squared_norm: Its squared norm over the whole tree.
      variance: Trace of the covariance of one example's gradient.
      along: Variance of one example's gradient along the mean; NaN if not asked for.
      count: Number of examples, int32.
    """

    value: jax.Array
    grads: Any
    squared_norm: jax.Array
    variance: jax.Array
    along: jax.Array
    count: jax.Array


def no_gradients(params: Any) -> GradientMoments:
    """Makes the moments to which gradients are added.

    Args:
      params: Tree of arrays, shaped like the gradients to come.

    Returns:
      Moments of no gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> moments = estimators.no_gradients(jnp.zeros(2))
      >>> for g in ([1.0, 0.0], [3.0, 0.0], [2.0, 3.0]):
      ...     moments = estimators.add_gradients(moments, jnp.array([g]))
      >>> print(moments.mean, moments.squared_norm, moments.variance)
      [2. 1.] 5.0 4.0

    Source:
      Written for this library.
    """
    zeros = jax.tree.map(jnp.zeros_like, links.widen(params))
    return GradientMoments(jnp.zeros((), jnp.int32), zeros, jnp.zeros((), float))


def add_gradients(moments: GradientMoments, grads: Any) -> GradientMoments:
    """Adds gradients to moments; none of them need be kept.

    With c new gradients of mean m and spread s about it, k older ones and d = m - mean

        mean   <- mean + c / (k + c) d
        spread <- spread + s + k c / (k + c) ||d||^2

    No squares of large numbers are subtracted, so that a spread far smaller than the
    mean is right too.

    Args:
      moments: Moments so far.
      grads: Tree of arrays (c, ...), a gradient in each row. A row may be the mean
        gradient of a microbatch of b examples: the variance of one example is then b
        times that of the rows.

    Returns:
      The moments of all.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> moments = estimators.no_gradients(jnp.zeros(2))
      >>> rows = jnp.array([[1.0, 0.0], [3.0, 4.0]])
      >>> print(estimators.add_gradients(moments, rows).variance)
      10.0

    Source:
      T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for
      computing sample variances", 1979.
    """
    grads = links.widen(grads)
    new = jax.tree.leaves(grads)[0].shape[0] if jax.tree.leaves(grads) else 0
    total = moments.count + new
    means = jax.tree.map(lambda g: jnp.mean(g, 0), grads)
    within = jax.tree.map(lambda g, m: g - m, grads, means)
    gap = jax.tree.map(jnp.subtract, means, moments.mean)
    share = new / jnp.maximum(total, 1)
    mean = jax.tree.map(
        lambda old, d: (old + share * d).astype(old.dtype), moments.mean, gap
    )
    between = moments.count * share * links.inner_product(gap, gap)
    spread = moments.spread + links.inner_product(within, within) + between
    return GradientMoments(total, mean, spread.astype(moments.spread.dtype))


def gradient_statistics(
    loss: ExampleLoss,
    params: Any,
    microbatches: Any,
    *,
    count: int | jax.Array | None = None,
    along: bool = False,
) -> GradientStatistics:
    """Measures the mean gradient of a batch and how single examples scatter about it.

    With g_i = grad loss(w, x_i), n examples and g their mean, all over the whole tree,

        variance = sum_i ||g_i - g||^2 / (n - 1)
        along    = sum_i <g_i - g, g / ||g||>^2 / (n - 1)

    Sums are taken over the leaves together: what one layer has in common with another
    counts. The memory is that of the gradients of one microbatch. With `along` the
    losses are differentiated once more, forward and in the direction of g alone.

    How many microbatches there are is a number, not a shape: one compiled program
    serves every batch size up to the longest.

    The loss sees one example: what it does across examples, as batch normalization
    does, has no gradient per example.

    Args:
      loss: From parameters and one example to a number.
      params: Tree of arrays.
      microbatches: Tree of arrays (k, b, ...), k microbatches of b examples. On a mesh
        examples lie along the devices, so cut the second axis.
      count: How many of the microbatches count, the first ones, from 1 to k. A traced
        number outside of that is taken for the nearest. None for all.
      along: Whether to measure the variance along the mean.

    Returns:
      The mean gradient and the numbers. Of one example the variance is NaN. A zero mean
      has no direction, and nothing lies along it.

    Raises:
      TypeError: If the loss of an example is not one number.
      ValueError: If leaves of the microbatches differ in their first two sizes, there
        is no example, or the count is known and out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> rows = jnp.array([[[3.0, 1.0], [1.0, -1.0]], [[2.0, 2.0], [2.0, -2.0]]])
      >>> found = estimators.gradient_statistics(
      ...     jnp.dot, jnp.zeros(2), rows, along=True)
      >>> print(found.grads, found.squared_norm)
      [2. 0.] 4.0
      >>> print(f"{found.variance:.3f}, of which along the mean {found.along:.3f}")
      4.000, of which along the mean 0.667

    Source:
      Written for this library, for the tests of L. Bottou, F. Curtis, J. Nocedal, 2018,
      R. Bollapragada et al., 2018, and T. Lau et al., 2024 (see `controllers`). Not
      `optax.microbatching`, whose mean (0.2.8) divides by all microbatches where only
      the first ones count, and whose microbatches are strided rows.
    """
    who = "gradient_statistics"
    times = _times(who, microbatches)
    if isinstance(count, int) and not 1 <= count <= times:
        raise ValueError(
            f"{who}: count must be from 1 to the {times} microbatches, got {count}"
        )
    # Beyond the last microbatch it would be taken again and again.
    real = times if count is None else jnp.clip(count, 1, times)
    one = links.loss_of_one(who, loss)

    def rows(i: jax.Array) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False),
            microbatches,
        )

    def add(i: jax.Array, carry: Any) -> Any:
        moments, total = carry
        values, grads = jax.vmap(jax.value_and_grad(one), (None, 0))(params, rows(i))
        total = total + jnp.sum(links.widen(values)).astype(total.dtype)
        return add_gradients(moments, grads), total

    def add_slopes(i: jax.Array, slopes: GradientMoments) -> GradientMoments:
        def values(params: Any) -> jax.Array:
            return jax.vmap(one, (None, 0))(params, rows(i))

        return add_gradients(slopes, jax.jvp(values, (params,), (direction,))[1])

    start = no_gradients(params), jnp.zeros((), float)
    moments, total = jax.lax.fori_loop(0, real, add, start)
    direction = _unit(moments.mean, params)
    slopes = no_gradients(jnp.zeros(()))
    if along:
        slopes = jax.lax.fori_loop(0, real, add_slopes, slopes)
    return GradientStatistics(
        total / moments.count,
        jax.tree.map(lambda m, p: m.astype(p.dtype), moments.mean, params),
        moments.squared_norm,
        moments.variance,
        slopes.variance,  # not a number if nothing was added
        moments.count,
    )


def _unit(mean: Any, params: Any) -> Any:
    """Returns the direction of a gradient, in the dtypes of the parameters."""
    length = links.tree_norm(mean)
    length = jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda m, p: (m / length).astype(p.dtype), mean, params)


def _times(who: str, microbatches: Any) -> int:
    """Returns the number of microbatches, the first size of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(microbatches)
    shapes = {trees.path_string(path): jnp.shape(x) for path, x in leaves}
    sizes = {shape[:2] for shape in shapes.values()}
    if len(sizes) != 1 or len(first := sizes.pop()) != 2 or 0 in first:
        raise ValueError(
            f"{who}: every leaf has the shape (microbatches, examples, ...), with one"
            f" or more of each, and the same; got the shapes {shapes}"
        )
    return first[0]
