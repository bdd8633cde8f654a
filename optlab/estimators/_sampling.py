"""Batches drawn by chance, as an accountant of private gradients takes them to be."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import links


class PoissonBatch(NamedTuple):
    """Which examples a step takes.

    Attributes:
      indices: Places in the data of those drawn, rising, shape (capacity,), int32; the
        entries that are not valid are 0.
      valid: Which entries were drawn, shape (capacity,).
      drawn: How many were drawn, shape (), int32; if more than the capacity, the last
        of them are not in the batch.
    """

    indices: jax.Array
    valid: jax.Array
    drawn: jax.Array


def poisson_batch(
    key: jax.Array, data_size: int, *, sampling_rate: float, capacity: int
) -> PoissonBatch:
    """Draws each example of the data with the same probability, on its own.

    The batches that `privacy_spent` assumes. Their sizes vary from step to step, around

        B = q n                                q the rate, n the size of the data

    which is the `batch_size` of `private_gradient`, and are filled up to one capacity,
    so that all steps are one program:

        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
        batch = poisson_batch(draw_key, n, sampling_rate=q, capacity=144)
        examples = jax.tree.map(lambda x: x[batch.indices], data)
        found = private_gradient(
            ..., examples, noise_key, batch_size=q * n, valid=batch.valid)

    A draw above the capacity B + t leaves some out, which no accountant knows of. Its
    probability p is small, and so is what T steps add to delta:

        p <= exp(-t^2 / (2 B + 2 t / 3))       delta + (1 + exp(epsilon)) T p

    With t = 10 sqrt(B), p is below 1e-8 for B = 4 and 1e-15 for B = 64.

    Args:
      key: Typed random key, a new one each step, the same on every host, and another
        than that of the noise. Kept secret as that one is: a batch that is known is
        worth no more than its noise.
      data_size: n, the number of examples, 1 or more.
      sampling_rate: q, at least 2^-32 and at most 1. The probability is q rounded down
        to a multiple of 2^-32.
      capacity: Entries of the batch, 1 or more; a multiple of the microbatch.

    Returns:
      The batch. The work is that of n random numbers a step.

    Raises:
      TypeError: If the key is not a typed one, or a size is no integer.
      ValueError: If an argument is out of range.

    Example:
      >>> import jax
      >>> from optlab import estimators
      >>> batch = estimators.poisson_batch(
      ...     jax.random.key(1), 1000, sampling_rate=0.004, capacity=8)
      >>> print(batch.indices, batch.drawn)
      [ 60 220 773 925   0   0   0   0] 4

    Source:
      Written for this library. The bound on p is Bernstein's.
    """
    who = "poisson_batch"
    links.require_key(who, key)
    for name, size in (("data_size", data_size), ("capacity", capacity)):
        if not isinstance(size, int | np.integer) or isinstance(size, bool):
            raise TypeError(f"{who}: {name} must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"{who}: {name} must be 1 or more, got {size}")
    if not 2**-32 <= sampling_rate <= 1:
        raise ValueError(
            f"{who}: sampling_rate must be at least 2^-32 and at most 1, got"
            f" {sampling_rate}"
        )
    # Whole numbers: uniform ones in float32 would round a small rate up.
    last = np.uint32(int(sampling_rate * 2**32) - 1)
    chosen = jax.random.bits(key, (data_size,), jnp.uint32) <= last
    drawn = jnp.sum(chosen, dtype=jnp.int32)
    (indices,) = jnp.nonzero(chosen, size=capacity, fill_value=0)
    return PoissonBatch(indices.astype(jnp.int32), jnp.arange(capacity) < drawn, drawn)
