"""The learning rate that is worth trying next."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

# Rates to choose from, at equal ratios.
GRID = 257


def next_rate(
    rates: Sequence[float],
    losses: Sequence[float],
    *,
    min_rate: float,
    max_rate: float,
    kappa: float = 1e6,
) -> float:
    """Chooses a rate by a Gaussian process on what was tried.

    The process has the logarithm of the rate for its input. Of 257 rates at equal
    ratios, without those tried, it is the one with the lowest

        mean - kappa * standard deviation.

    With a large kappa the next rate is where least is known, with one of about 2 it is
    near the best so far.

    Args:
      rates: The rates tried, at least one.
      losses: The loss that each leads to. Those of diverged rates should be moderate
        numbers: a huge one hides the differences between the others.
      min_rate: Lowest rate to choose from.
      max_rate: Highest rate to choose from.
      kappa: Weight of what is not known.

    Returns:
      The rate; the same for the same arguments.

    Raises:
      ModuleNotFoundError: If scikit-learn is not installed.

    Example:
      >>> from optlab import controllers
      >>> rates, losses = [1e-3, 1e-1], [2.0, 1.0]
      >>> limits = {"min_rate": 1e-3, "max_rate": 1e-1}
      >>> f"{controllers.next_rate(rates, losses, **limits):.4f}"
      '0.0100'

    Source:
      The acquisition of AutoLRS (see `autolrs`), whose code uses scikit-optimize:
      kappa 1e6, Matern 5/2, noise fitted. Differs from that code: rates on a grid
      instead of random ones refined by a search, so that nothing is random; the length
      of the kernel is kept between 0.1 and 2 widths of the range.
    """
    try:
        from sklearn import exceptions, gaussian_process
        from sklearn.gaussian_process import kernels
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "controllers.next_rate: the Gaussian process needs scikit-learn, which is"
            " not installed. Install the lab: pip install 'optlab-jax[lab]'"
        ) from error
    grid = np.linspace(0.0, 1.0, GRID)
    width = np.log(max_rate / min_rate)
    tried = np.log(np.asarray(rates) / min_rate) / width
    kernel = kernels.ConstantKernel() * kernels.Matern(
        0.3, length_scale_bounds=(0.1, 2.0), nu=2.5
    ) + kernels.WhiteKernel(0.01, noise_level_bounds=(1e-6, 1.0))
    process = gaussian_process.GaussianProcessRegressor(kernel, normalize_y=True)
    with warnings.catch_warnings():
        # It warns when a constant ends at its bound, as it will after two trials.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        process.fit(tried[:, None], np.asarray(losses))
    predicted: Any = process.predict(grid[:, None], return_std=True)
    mean, deviation = predicted
    value = mean - kappa * deviation
    value[np.abs(grid[:, None] - tried).min(axis=1) < 0.5 / GRID] = np.inf
    point = grid[int(np.argmin(value))]
    return float(np.clip(min_rate * np.exp(point * width), min_rate, max_rate))
