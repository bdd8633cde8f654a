"""Shapes of a decay: the fraction u still to come -> the factor still in force.

Every shape maps u = 1 (the phase begins) to 1 and u = 0 (it has ended) to 0, exactly,
and keeps its relative accuracy all the way down to 0. Counting what is left, not what
is done, is what makes that possible: 1 - t/T cancels near the end, (T - t)/T does not.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Shape = Callable[[jax.Array], jax.Array]


def linear(u: jax.Array) -> jax.Array:
    """Falls in proportion to what is left, v = u.

    Args:
      u: Fraction of the phase still to come, in [0, 1], floating, any shape.

    Returns:
      Factor in [0, 1], same shape and dtype.

    Example:
      >>> from optlab.schedules import shapes
      >>> shapes.linear(0.25)
      0.25

    Source:
      Defazio et al., arXiv:2310.07831: optimal for constant gradient norms.
    """
    return u


def cosine(u: jax.Array) -> jax.Array:
    """Half a cosine wave, v = (1 - cos(pi u)) / 2 = sin^2(pi u / 2).

    Args:
      u: Fraction of the phase still to come, in [0, 1], floating, any shape.

    Returns:
      Factor in [0, 1], same shape and dtype. The squared form does not cancel near
      the end and is exactly 0 at u = 0.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(shapes.cosine(0.5).round(6))
      0.5

    Source:
      Loshchilov and Hutter, arXiv:1608.03983.
    """
    return jnp.square(jnp.sin(jnp.pi / 2 * u))


def one_minus_sqrt(u: jax.Array) -> jax.Array:
    """Falls steeply at first, v = 1 - sqrt(q) with q = 1 - u the fraction done.

    Args:
      u: Fraction of the phase still to come, in [0, 1], floating, any shape.

    Returns:
      Factor in [0, 1], same shape and dtype, computed as u / (1 + sqrt(1 - u)).

    Example:
      >>> from optlab.schedules import shapes
      >>> print(shapes.one_minus_sqrt(0.75))
      0.5

    Source:
      Haegele et al., arXiv:2405.18392.
    """
    return u / (1 + jnp.sqrt(1 - u))


def moebius(k: float | jax.Array, base: Shape = linear) -> Shape:
    """Bends a shape by v -> v / (v + k (1 - v)).

    k < 1 keeps the factor high for longer, k = 1 changes nothing, k > 1 drops it
    sooner. Of `linear` with k = 1/2 this is REX; of `cosine` with k = phi / 2 it is the
    unified budget-aware schedule.

    Args:
      k: Positive number; it may be traced.
      base: Shape to bend.

    Returns:
      The bent shape.

    Raises:
      ValueError: If k is a number that is not positive.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(round(shapes.moebius(0.5)(0.5), 6))
      0.666667

    Source:
      Chen et al. (REX), arXiv:2107.04197; UBA, arXiv:2505.24452.
    """
    if isinstance(k, (int, float)) and not k > 0:
        raise ValueError(f"shapes.moebius: k must be positive, got {k}")

    def shape(u: jax.Array) -> jax.Array:
        v = base(u)
        return v / (v + k * (1 - v))

    return shape


def exponential(b: float | jax.Array, base: Shape = linear) -> Shape:
    """Bends a shape by v -> (b^v - 1) / (b - 1).

    b > 1 drops the factor sooner, b < 1 later. Of `cosine` this is cosine power
    annealing of order b.

    Args:
      b: Positive number other than 1, the map's limit without effect; may be traced.
      base: Shape to bend.

    Returns:
      The bent shape.

    Raises:
      ValueError: If b is a number that is not positive, or 1.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(shapes.exponential(4.0)(0.5).round(6))
      0.333333

    Source:
      Hundt et al., sharpDARTS, arXiv:1903.09900 (continuous form).
    """
    if isinstance(b, (int, float)) and (not b > 0 or b == 1):
        raise ValueError(
            f"shapes.exponential: b must be positive and not 1, got {b}; at 1 the map"
            " has no effect: use the base shape itself"
        )

    # A number's logarithm in double precision: near 1 float32 has lost most of b - 1.
    log = math.log(b) if isinstance(b, (int, float)) else jnp.log(b)

    def shape(u: jax.Array) -> jax.Array:
        v = base(u)
        # Rounding must not move the start of the decay off 1.
        return jnp.where(v == 1, 1.0, jnp.expm1(v * log) / (b - 1))

    return shape
