"""Private gradients: sums of clipped ones, noised once."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optlab import links, trees
from optlab.estimators import _clipped


def noised_mean(
    total: Any,
    key: jax.Array,
    *,
    clip: float | jax.Array,
    noise_multiplier: float | jax.Array,
    batch_size: float | jax.Array,
) -> Any:
    """Adds the noise of one step to a clipped sum, and divides by the batch size.

        G = (S + n) / B,     n ~ N(0, (sigma C)^2)

    Once a step, after everything is summed: over microbatches, over devices, over the
    parts of a batch too large for one call. `private_gradient` does it all; this is
    for sums of your own.

    Args:
      total: Tree S of arrays, of which no example moves more than C.
      key: Typed random key, a new one each step and kept secret: who knows it, or can
        guess the small number that it was made of, can subtract the noise. The same on
        every host: with keys of JAX's default kind noise depends on the key, the order
        of the leaves and their shapes, not on the mesh or the placement.
      clip: The C of the sum.
      noise_multiplier: sigma, 0 or more; what a privacy accountant asks for.
      batch_size: B, the expected number of examples. Under Poisson sampling this is
        the sampling rate times the size of the data, not what came this time.

    Returns:
      Tree like the sum, of its dtypes; the noise is drawn in float32 or wider.

    Raises:
      TypeError: If the key is not a typed one, a leaf holds no floats, or what must be
        a number is none.
      ValueError: If an argument is out of range, or clip is infinite with noise.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> mean = estimators.noised_mean(
      ...     jnp.zeros(100_000), jax.random.key(0),
      ...     clip=1.0, noise_multiplier=1.0, batch_size=4)
      >>> print(f"{mean.std():.2f}")
      0.25

    Source:
      Abadi et al., 2016, arXiv:1607.00133. The guarantee is that of real numbers:
      rounding in floating point is not accounted for.
    """
    _require_noise("noised_mean", key, clip, noise_multiplier, batch_size)
    std = jnp.where(noise_multiplier == 0, 0, noise_multiplier * clip)

    def noised(i: int, x: jax.Array) -> jax.Array:
        wide = links.widen(x)
        place = jax.typeof(x).sharding
        # By the place of the leaf: names, as numbers, could be the same twice.
        noise = jax.random.normal(
            jax.random.fold_in(key, i),
            x.shape,
            wide.dtype,
            out_sharding=place if any(place.spec) else None,
        )
        return ((wide + std * noise) / batch_size).astype(x.dtype)

    total = jax.tree.map(jnp.asarray, total)
    for path, x in jax.tree_util.tree_leaves_with_path(total):
        # Complex noise of that variance would have half of it in each direction.
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"noised_mean: leaf '{trees.path_string(path)}' is of {x.dtype}; noise"
                " is for floats"
            )
    leaves, structure = jax.tree.flatten(total)
    return structure.unflatten(noised(i, x) for i, x in enumerate(leaves))


def private_gradient(
    loss: _clipped.ExampleLoss,
    params: Any,
    batch: Any,
    key: jax.Array,
    *,
    clip: float | jax.Array,
    noise_multiplier: float | jax.Array,
    batch_size: float | jax.Array,
    microbatch_size: int | None = None,
    valid: jax.Array | None = None,
) -> _clipped.PerExampleEstimate:
    """Estimates a gradient that hides whether any one example was there: DP-SGD.

        G = (sum_i g_i min(1, C / ||g_i||) + N(0, (sigma C)^2)) / B

    Sum and noise in one call, since they must agree on C and the noise belongs to the
    sum over all devices. What follows, any optimizer with momentum, decay and rate, is
    as private as G. Do not average such gradients over parts of a batch, as
    `optax.MultiSteps` does: each part has noise for a whole step.

        loss(params, example) -> number
        found = private_gradient(loss, params, batch, random.fold_in(key, step), ...)
        updates, state = tx.update(found.grads, state, params)

    A run that goes on from a checkpoint with other batches needs another key: two
    gradients with one noise differ by their data alone. Inside `jax.shard_map` each
    device would add the noise: use the two parts, `clipped_gradient_sum` and
    `noised_mean`, with a `psum` between.

    Args:
      loss: From parameters and one example to a number.
      params: Tree of arrays.
      batch: Tree of arrays (b, ...), the examples.
      key: Typed random key, a new one each step; see `noised_mean`.
      clip: Largest norm C of an example's gradient, above 0.
      noise_multiplier: sigma, 0 or more; `privacy_spent` says what it is worth.
      batch_size: B, the expected number of examples; see `noised_mean`.
      microbatch_size: Examples differentiated at a time; see `clipped_gradient_sum`.
      valid: Which examples count, shape (b,); `poisson_batch` gives them. The batches
        that an accountant assumes have another size each time.

    Returns:
      The gradient in the dtypes of the parameters, and numbers that are not private.

    Raises:
      TypeError: As `clipped_gradient_sum` and `noised_mean`.
      ValueError: As they do.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> rows = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]])
      >>> found = estimators.private_gradient(
      ...     jnp.dot, jnp.zeros(2), rows, jax.random.key(0),
      ...     clip=1.0, noise_multiplier=0.0, batch_size=3)
      >>> print(-0.1 * found.grads)
      [-0.03       -0.07333334]

    Source:
      Abadi et al., 2016, arXiv:1607.00133. Differs from `optax.contrib`'s: the batch
      size is the expected one, and gradients are not all held at once.
    """
    _require_noise("private_gradient", key, clip, noise_multiplier, batch_size)
    found = _clipped.clipped_gradient_sum(
        loss, params, batch, clip=clip, microbatch_size=microbatch_size, valid=valid
    )
    mean = noised_mean(
        found.grads,
        key,
        clip=clip,
        noise_multiplier=noise_multiplier,
        batch_size=batch_size,
    )
    return found._replace(
        grads=jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), mean, params)
    )


def _require_noise(
    who: str, key: Any, clip: Any, noise_multiplier: Any, batch_size: Any
) -> None:
    links.require_key(who, key)
    _clipped.require_numbers(
        who, clip=clip, noise_multiplier=noise_multiplier, batch_size=batch_size
    )
    links.require_positive(who, clip=clip, batch_size=batch_size)
    links.require_nonnegative(who, noise_multiplier=noise_multiplier)
    numbers = _clipped.NUMBERS
    if isinstance(clip, numbers) and math.isinf(clip):
        if not isinstance(noise_multiplier, numbers) or noise_multiplier > 0:
            raise ValueError(
                f"{who}: clip is infinite, so no noise hides an example; give a finite"
                " clip, or noise_multiplier=0.0"
            )
