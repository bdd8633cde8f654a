"""Shapes of a decay: the fraction u still to come -> the factor still in force.

Every shape maps u = 1 (the phase begins) to 1 and u = 0 (it has ended) to 0, exactly,
and keeps its relative accuracy all the way down to 0. Counting what is left, not what
is done, is what makes that possible: 1 - t/T cancels near the end, (T - t)/T does not.
`half_life` alone ends above 0, for it has no floor. `geometric` and `harmonic` are no
shapes but families of them: which one it is depends on how deep the decay falls.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optlab.schedules import _checks

Shape = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A decay along a weighted mean of the value it starts from and its floor.

    Where a shape is the same curve for every floor, a mean is another one for each
    ratio of start to floor. Both ends must be positive. Give `geometric` or `harmonic`
    wherever a shape is taken as the decay between two values.

    Attributes:
      name: What errors call it.
      shape: From the ratio start / floor, a number or a traced scalar, to the shape.

    Source:
      Written for this library.
    """

    name: str
    shape: Callable[[Any], Shape]


Decay = Shape | Mean


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
      Factor in [0, 1], same shape and dtype, computed as u / (1 + sqrt(1 - u)). Its
      slope, infinite at u = 1, is given as 1 there: no gradient is a NaN.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(shapes.one_minus_sqrt(0.75))
      0.5

    Source:
      Haegele et al., arXiv:2405.18392.
    """
    left = jnp.asarray(u)
    # Two choices: a root of 0 has an infinite derivative even where it is not chosen.
    falling = left < 1
    root = jnp.where(falling, jnp.sqrt(jnp.where(falling, 1 - left, 1.0)), 0.0)
    return left / (1 + root)


def inverse_sqrt(timescale: float | jax.Array = 10.0) -> Shape:
    """Falls like 1 / sqrt(1 + a q), q = 1 - u the fraction done, down to 0 at q = 1.

    Steep at first and flat at the end; the larger the timescale, the steeper.

        v = (h(1) - h(q)) / h(1),   h(q) = 1 / sqrt(1 + a q) - 1

    Args:
      timescale: Positive number a; it may be traced.

    Returns:
      The shape.

    Raises:
      ValueError: If the timescale is a number that is not positive.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(shapes.inverse_sqrt(8.0)(0.625))
      0.25

    Source:
      The cooldown of the infinite schedule, arXiv:2403.08763, with the timescale of
      its forks of GPT-NeoX.
    """
    _checks.positive("shapes.inverse_sqrt", "timescale", timescale)

    def shape(u: jax.Array) -> jax.Array:
        # h(1) - h(q) with its two roots rationalised: nothing cancels near u = 0.
        end, now = jnp.sqrt(1 + timescale), jnp.sqrt(1 + timescale * (1 - u))
        return u * (end + 1) / (now * (end + now))

    return shape


def half_life(fraction: float | jax.Array) -> Shape:
    """Halves the factor again and again, v = 0.5^(q / fraction), q = 1 - u.

    It has no floor: it ends at 0.5^(1 / fraction), and a schedule holds that value. A
    half-life of 50 steps in a decay of 200 is `half_life(50 / 200)`.

    Args:
      fraction: Half-life, as a fraction of the decay's length; it may be traced.

    Returns:
      The shape; 1 at u = 1, 0.5^(1 / fraction) at u = 0.

    Raises:
      ValueError: If the fraction is a number that is not positive.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(*(shapes.half_life(50 / 200)(u) for u in (1.0, 0.75, 0.5, 0.0)))
      1.0 0.5 0.25 0.0625

    Source:
      Hu et al., MiniCPM, arXiv:2404.06395; the half-life there, 5000 steps, UNVERIFIED.
    """
    _checks.positive("shapes.half_life", "fraction", fraction)

    def shape(u: jax.Array) -> jax.Array:
        return jnp.exp2((u - 1) / fraction)

    return shape


def power(q: float | jax.Array, base: Shape = linear) -> Shape:
    """Bends a shape by v -> v^q.

    q > 1 drops the factor sooner, q < 1 later. Of `linear` this is polynomial decay.

    Args:
      q: Positive number; it may be traced.
      base: Shape to bend.

    Returns:
      The bent shape.

    Raises:
      ValueError: If q is a number that is not positive.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(shapes.power(2.0)(0.5))
      0.25

    Source:
      No publication of its own.
    """
    _checks.positive("shapes.power", "q", q)

    def shape(u: jax.Array) -> jax.Array:
        v = base(u)
        # 0^q has no logarithm, and a slope in v that is infinite for q < 1.
        ended = v == 0
        return jnp.where(ended, 0.0, jnp.where(ended, 1.0, v) ** q)

    return shape


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
    _checks.positive("shapes.moebius", "k", k)

    def shape(u: jax.Array) -> jax.Array:
        v = base(u)
        return v / (v + k * (1 - v))

    return shape


def exponential(b: float | jax.Array, base: Shape = linear) -> Shape:
    """Bends a shape by v -> (b^v - 1) / (b - 1).

    b > 1 drops the factor sooner, b < 1 later; at b = 1, the limit, the map has no
    effect. Of `cosine` this is cosine power annealing of order b; of `linear` with
    b = 2 it is the decay 2 x 0.5^q - 1 that Megatron-LM calls exponential.

    Args:
      b: Positive number; it may be traced.
      base: Shape to bend.

    Returns:
      The bent shape.

    Raises:
      ValueError: If b is a number that is not positive.

    Example:
      >>> from optlab.schedules import shapes
      >>> print(shapes.exponential(4.0)(0.5).round(6))
      0.333333

    Source:
      Hundt et al., sharpDARTS, arXiv:1903.09900 (continuous form).
    """
    _checks.positive("shapes.exponential", "b", b)
    # A number's logarithm in double precision: near 1 float32 has lost most of b - 1.
    x = math.log(b) if isinstance(b, (int, float)) else jnp.log1p(jnp.asarray(b) - 1)

    def shape(u: jax.Array) -> jax.Array:
        v = base(u)
        # Both differences vanish at b = 1: there a series in x = ln b, whose next term
        # is below 2e-12 of the factor.
        near = jnp.abs(x) < 0.01
        safe = jnp.where(near, 1.0, x)
        # (e^(vx) - 1) / (e^x - 1) without a power that may overflow.
        size = jnp.abs(safe)
        rise = jnp.exp((v - 1) * jnp.maximum(safe, 0.0))
        far = rise * jnp.expm1(-v * size) / jnp.expm1(-size)
        w = x * (v - 1)
        series = v * (1 + w / 2 + w * x * (2 * v - 1) / 12 + v * w * w * x / 24)
        # Rounding must not move the start of the decay off 1.
        return jnp.where(v == 1, 1.0, jnp.where(near, series, far))

    return shape


geometric = Mean("shapes.geometric", exponential)
"""Exponential decay to a floor: equal steps divide the value by equal factors.

With P the value at the start, F the floor and q = 1 - u the fraction done,

    value = P (F / P)^q = P^u F^(1 - u)

Source:
  The exponential map of order P / F: the annealing of the infinite schedule, and one of
  the decays of WSD.
"""

harmonic = Mean("shapes.harmonic", moebius)
"""Inverse-proportional decay to a floor: the reciprocal of the value rises evenly.

With P the value at the start, F the floor and q = 1 - u the fraction done,

    value = 1 / (q / F + (1 - q) / P)

Source:
  The Moebius map of k = P / F. Wen et al., WSD-S, arXiv:2410.05192.
"""
