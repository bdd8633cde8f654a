"""A schedule from the gradient norms of an earlier run."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.schedules import _checks, _phases

# Power of the norm in the weight of a step.
POWERS = {"sgd": 2, "adam": 1}

# Norms of a longer run are thinned to this many points, as in the authors' code.
POINTS = 10_000


def refined(
    norms: Sequence[float] | np.ndarray | jax.Array,
    *,
    peak: float | jax.Array,
    total_steps: int,
    method: str = "sgd",
    smoothing: float = 0.1,
) -> optax.Schedule:
    """Turns the gradient norms of an earlier run into the schedule of the next one.

    Steps with large gradients get small rates, and all rates fall to zero at the end:
    norms that fall at first give a warm-up, constant norms linear decay. Train once
    with any schedule, record the norms (`probes.record_gradient_norms`), train again.
    With G_t the smoothed norm at the fraction t / T of the earlier run,

        w_t = G_t^-2  ('sgd', l2 norms)   or   G_t^-1  ('adam', l1 norms)
        rate_t = peak v_t / max v,   v_t = w_t (w_{t+1} + ... + w_T),   t = 0 ... T

    From step T on it is exactly 0; its largest value is the peak.

    Args:
      norms: Gradient norm of every step of the earlier run, or of evenly spaced ones,
        shape (n,), not negative. l2 norms for 'sgd', l1 norms for 'adam'. Those that
        are infinite, not a number or zero are left out.
      peak: Largest rate; a number or a scalar array, which may be traced.
      total_steps: Length T of the next run in steps; it may differ from the earlier.
      method: 'sgd', or 'adam' for optimizers that divide by a running norm.
      smoothing: Width of the median filter, as a fraction of the run; 0 for none.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If norms are no list of numbers, one is negative, none is usable, the
        method is unknown or the smoothing not in [0, 1).
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> norms = [4, 2, 1, 1, 1]
      >>> rate = schedules.refined(norms, peak=1.0, total_steps=4)
      >>> print(*(float(rate(t)) for t in range(5)))
      0.1015625 0.375 1.0 0.5 0.0
      >>> rate = schedules.refined(norms, peak=1.0, total_steps=4, method="adam")
      >>> print(*(float(rate(t)) for t in range(5)))
      0.4375 0.75 1.0 0.5 0.0

    Source:
      Defazio et al., "When, why and how much?", 2023, arXiv:2310.07831; weights, closed
      form, width and padding of the filter as in the authors' code. UNVERIFIED:
      whether their padding on the right repeats the last point. Differs from that code:
      no point is dropped at the ends, a run of up to 10,000 steps is not resampled to
      10,000 points, and zero norms are left out.
    """
    who = "schedules.refined"
    total = _checks.whole(who, "total_steps", total_steps, 1)
    if method not in POWERS:
        raise ValueError(f"{who}: method must be one of {[*POWERS]}, got {method!r}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"{who}: smoothing must be in [0, 1), got {smoothing}")
    grid = np.linspace(0, 1, min(total, POINTS) + 1)
    smooth = _median_filtered(_resampled(who, norms, grid), smoothing)
    weights = (smooth.min() / smooth) ** POWERS[method]
    later = np.cumsum(weights[::-1])[::-1] - weights
    factors = weights * later
    factors[-1] = 0.0
    factors = factors / factors.max()

    @jax.jit
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        to_come = total - jnp.clip(_phases.signed(count), 0, total)
        # From the end backwards: there the factor is small and must stay accurate.
        backwards = jnp.asarray(factors[::-1], float)
        if len(factors) == total + 1:
            return peak * backwards[to_come]
        place = to_come / total * (len(factors) - 1)
        below = jnp.clip(place.astype(jnp.int32), 0, len(factors) - 2)
        return peak * _phases.between(
            backwards[below + 1], backwards[below], place - below
        )

    return schedule


def _resampled(who: str, norms: object, grid: np.ndarray) -> np.ndarray:
    """Returns the usable norms at fractions of the run, in double precision."""
    given = _checks.known(norms)
    if given is None:
        raise TypeError(f"{who}: norms are worked on outside of jit; they are traced")
    if given.ndim != 1 or not given.size:
        raise ValueError(f"{who}: norms need the shape (n,), n > 0, got {given.shape}")
    if (given < 0).any():
        at = int(np.argmax(given < 0))
        raise ValueError(f"{who}: norm {at} is {given[at]}; a norm is not negative")
    usable = np.isfinite(given) & (given > 0)
    if not usable.any():
        raise ValueError(
            f"{who}: none of the {given.size} norms is finite and positive"
        )
    places = np.linspace(0, 1, given.size)
    return np.interp(grid, places[usable], given[usable])


def _median_filtered(values: np.ndarray, width: float) -> np.ndarray:
    """Replaces each value by the median of those around it.

    Before the first value it stands repeated; after the last they are reflected.
    """
    half = int(width * len(values) / 2)
    padded = np.pad(np.pad(values, (half, 0), "edge"), (0, half), "reflect")
    windows = (padded[i : i + 2 * half + 1] for i in range(len(values)))
    return np.array([np.median(window) for window in windows])
