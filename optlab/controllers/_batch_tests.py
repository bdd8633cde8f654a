"""Batch sizes at which the mean gradient is known well enough."""

import math

import numpy as np

# Of the measured squared norm this much is signal, however much looks like noise.
LEAST_SIGNAL = 0.01


def norm_test(
    batch_size: int,
    squared_norm: float,
    variance: float,
    *,
    eta: float = 0.5,
    debias: bool = True,
    max_growth: float = 2.0,
    max_batch_size: int | None = None,
) -> int:
    """Asks for the batch size at which noise is a share of the gradient's length.

        n >= variance / (eta^2 G^2),   G^2 = ||g||^2 - variance / n      (debias)

    The squared norm of a mean of n gradients is larger than that of the gradient that
    it estimates, by variance / n. Left in, that makes small batches seem good: in pure
    noise variance / ||g||^2 is n, whatever the noise. G^2 is at least 0.01 ||g||^2.

    Args:
      batch_size: Batch size n of the measurement.
      squared_norm: ||g||^2 of its mean gradient, or a mean over several batches.
      variance: Trace of the covariance of one example's gradient, alike.
      eta: Largest standard deviation of the mean gradient, as a share of its length.
      debias: Whether to take the noise out of the squared norm.
      max_growth: Largest factor on the batch size; infinite for none.
      max_batch_size: Largest batch size; None for none.

    Returns:
      The batch size to go on with, never smaller. Numbers that are not finite decide
      nothing.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> from optlab import controllers
      >>> for debias in (True, False):
      ...     print(controllers.norm_test(16, 1.625, 10.0, debias=debias, max_growth=9))
      40
      25

    Source:
      R. Byrd et al., "Sample size selection in optimization methods for machine
      learning", 2012, as in the code of T. Lau, H. Liu, M. Kolar, "AdAdaGrad", 2024,
      arXiv:2402.11215; the paper not verified. Differs from that code: debias and
      max_growth, which `debias=False, max_growth=math.inf` turn off.
    """
    _check("norm_test", batch_size, max_growth, max_batch_size, eta=eta)
    signal = _signal(batch_size, squared_norm, variance, debias)
    noise = [variance / eta**2]
    return _asked(batch_size, signal, noise, max_growth, max_batch_size)


def inner_product_test(
    batch_size: int,
    squared_norm: float,
    variance: float,
    along: float,
    *,
    theta: float = 0.5,
    debias: bool = True,
    max_growth: float = 2.0,
    max_batch_size: int | None = None,
) -> int:
    """Asks for the batch size at which the mean gradient leads downhill.

        n >= Var_i <g_i, g> / (theta^2 ||g||^4)
           = along / (theta^2 G^2),   along = Var_i <g_i, g> / ||g||^2

    G^2 is that of `norm_test`. Noise across the gradient does not count, so that in
    many dimensions far smaller batches pass than in the norm test.

    Args:
      batch_size: As for `norm_test`.
      squared_norm: As there.
      variance: As there; only debias uses it.
      along: Variance of one example's gradient along the mean gradient.
      theta: Largest standard deviation along the mean, as a share of its length.
      debias: As for `norm_test`.
      max_growth: As there.
      max_batch_size: As there.

    Returns:
      The batch size to go on with, never smaller.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> from optlab import controllers
      >>> controllers.inner_product_test(16, 2.0, 16.0, 8.0, max_growth=9)
      32

    Source:
      R. Bollapragada, R. Byrd, J. Nocedal, "Adaptive sampling strategies for stochastic
      optimization", 2018, as in the code that `norm_test` names; the paper not
      verified. Differs from that code, which adds up the variances of the layers and
      leaves out what they have in common.
    """
    _check("inner_product_test", batch_size, max_growth, max_batch_size, theta=theta)
    signal = _signal(batch_size, squared_norm, variance, debias)
    noise = [along / theta**2]
    return _asked(batch_size, signal, noise, max_growth, max_batch_size)


def augmented_test(
    batch_size: int,
    squared_norm: float,
    variance: float,
    along: float,
    *,
    theta: float = 0.5,
    nu: float = 1.0,
    debias: bool = True,
    max_growth: float = 2.0,
    max_batch_size: int | None = None,
) -> int:
    """Asks for the batch size that passes along the mean gradient and across it.

        n >= along / (theta^2 G^2)   and   n >= (variance - along) / (nu^2 G^2)

    Args:
      batch_size: As for `norm_test`.
      squared_norm: As there.
      variance: As there.
      along: As for `inner_product_test`.
      theta: As there.
      nu: Largest standard deviation across the mean, as a share of its length.
      debias: As for `norm_test`.
      max_growth: As there.
      max_batch_size: As there.

    Returns:
      The batch size to go on with, never smaller.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> from optlab import controllers
      >>> controllers.augmented_test(16, 2.0, 16.0, 4.0, nu=0.5, max_growth=9)
      48

    Source:
      As `inner_product_test`.
    """
    who = "augmented_test"
    _check(who, batch_size, max_growth, max_batch_size, theta=theta, nu=nu)
    signal = _signal(batch_size, squared_norm, variance, debias)
    noise = [along / theta**2, max(variance - along, 0.0) / nu**2]
    return _asked(batch_size, signal, noise, max_growth, max_batch_size)


def _signal(n: int, squared_norm: float, variance: float, debias: bool) -> float:
    """Returns the squared norm of the gradient itself."""
    if not debias:
        return squared_norm
    return max(squared_norm - variance / n, LEAST_SIGNAL * squared_norm)


def _asked(
    n: int, signal: float, noise: list[float], max_growth: float, largest: int | None
) -> int:
    """Returns the batch size at which no noise is above the signal, if it may be."""
    numbers = [float(x) for x in (signal, *noise)]
    if not all(map(math.isfinite, numbers)):
        return n
    signal, loudest = numbers[0], max(numbers[1:])
    wanted = math.inf if loudest > 0 else 0.0
    if signal > 0:
        wanted = float(np.ceil(loudest / signal))
    limit = n * max_growth if largest is None else min(n * max_growth, largest)
    asked = min(wanted, limit)
    # Noise alone asks for any size: without a limit that is no answer.
    return n if math.isinf(asked) else max(n, math.floor(asked))


def _check(
    who: str, n: int, max_growth: float, largest: int | None, **shares: float
) -> None:
    if n < 1:
        raise ValueError(f"{who}: batch_size must be at least 1, got {n}")
    if not max_growth >= 1:
        raise ValueError(f"{who}: max_growth must be at least 1, got {max_growth}")
    if largest is not None and largest < n:
        raise ValueError(f"{who}: max_batch_size={largest} is below the batch size {n}")
    for name, share in shares.items():
        if not 0 < share < math.inf:
            raise ValueError(f"{who}: {name} must be above 0 and finite, got {share}")
