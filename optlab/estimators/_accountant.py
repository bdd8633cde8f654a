"""What the noise of private gradients is worth, by an accountant of its own."""

import importlib
import math

import numpy as np

from optlab import links


def privacy_spent(
    noise_multiplier: float, *, sampling_rate: float, steps: int, delta: float
) -> float:
    """Asks an accountant for the epsilon of a run of `private_gradient`.

    For data sets that differ by one example more or less, and batches drawn by Poisson
    sampling, as `poisson_batch` draws them: each example, at each step, with the same
    probability, on its own. Batches of a shuffled pass over the data are not of that
    kind, and the number is not theirs. Runs whose results chose this one's learning
    rate or clip are not in it either.

    Args:
      noise_multiplier: sigma, above 0; from some 0.1 on, since the work and the memory
        of the accountant grow with its inverse square.
      sampling_rate: Probability of an example to be in a batch, above 0, at most 1: the
        expected batch size over the size of the data.
      steps: Number of steps, 1 or more.
      delta: Probability with which epsilon may not hold, between 0 and 1.

    Returns:
      Epsilon, by privacy-loss distributions: an upper bound. For sigma 1, a sampling
      rate of 0.01 and 1000 steps it is 1.83 at a delta of 1e-5.

    Raises:
      TypeError: If steps is no integer.
      ImportError: If the package `dp-accounting` is not there; the extra
        `optlab-jax[privacy]` installs it.
      ValueError: If an argument is out of range.

    Source:
      `dp_accounting.pld`, of Google's differential-privacy library.
    """
    who = "privacy_spent"
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool):
        raise TypeError(f"{who}: steps must be an integer, got {steps!r}")
    links.require_positive(who, noise_multiplier=noise_multiplier, steps=steps)
    if math.isinf(noise_multiplier):
        raise ValueError(f"{who}: noise_multiplier must be finite, got inf")
    for name, value in (("sampling_rate", sampling_rate), ("delta", delta)):
        if not 0 < value <= 1 or (name == "delta" and value == 1):
            upto = "below" if name == "delta" else "at most"
            raise ValueError(f"{who}: {name} must be above 0, {upto} 1, got {value}")
    try:
        # The one package of this room that need not be there.
        accounting = importlib.import_module("dp_accounting")
    except ImportError as error:
        raise ImportError(
            f"{who}: needs dp-accounting: pip install 'optlab-jax[privacy]'"
        ) from error
    event = accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1:
        event = accounting.PoissonSampledDpEvent(sampling_rate, event)
    accountant = accounting.pld.PLDAccountant(
        accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    return float(accountant.compose(event, steps).get_epsilon(delta))
