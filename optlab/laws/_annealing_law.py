"""Laws whose gain from annealing is a delayed sum of the falls of the rate."""

import functools

import jax.numpy as jnp
import numpy as np

from optlab.laws import _law, _sums

# What the default law takes for likely: progress that hardly follows the rate, and a
# response within a fortieth of the longest curve. Both were chosen on runs of this
# project's own workload, with other initial values than those that try the law.
POWER = (0.3, 0.2)
RESPONSE = (0.025, 0.5)

# Of the quadrature that makes n / (n + tau) a mean of exponential responses.
NODES, SHARES = np.polynomial.laguerre.laggauss(6)


def power_law() -> _law.Law:
    """The law that knows no annealing, L = L0 + A S1^-alpha.

    The baseline that the others must beat: only the area under the schedule counts.

    Returns:
      The law; parameters L0, A, alpha.

    Example:
      >>> from optlab import laws
      >>> laws.power_law().names
      ('L0', 'A', 'alpha')

    Source:
      The annealing law without its last term.
    """
    parameters = (_law.Parameter("L0"), _law.Parameter("A"), _exponent())
    return _law.Law("power", parameters, _losses_of(_power_form), {}, _power_form)


def annealing_law(*, decay: float = 0.999, warmup: str = "area") -> _law.Law:
    """The annealing law, L = L0 + A S1^-alpha - C S2.

    S1 is the area under the schedule, S2 the area of its falls, delayed by about
    1 / (1 - decay) updates; see `laws.forward_area` and `laws.annealing_area`.

    Args:
      decay: What is left of a fall's delay after one update, in (0, 1).
      warmup: "area" counts the warm-up's rates in S1; "peak" counts it as if the rate
        had been at the peak, as the authors do. S2 leaves it out both ways.

    Returns:
      The law; parameters L0, A, alpha, C.

    Raises:
      ValueError: If the decay is not between 0 and 1, or the warm-up is unknown.

    Example:
      >>> from optlab import laws
      >>> laws.annealing_law(decay=0.99).names
      ('L0', 'A', 'alpha', 'C')

    Source:
      Tissue et al., 2024, arXiv:2408.11029, formula and starts from the authors'
      script. Differs from it: the warm-up's true area by default, exact gradients.
    """
    if not 0 < decay < 1:
        raise ValueError(
            f"laws.annealing_law: decay must lie between 0 and 1, got {decay}"
        )
    if warmup not in ("area", "peak"):
        raise ValueError(
            f"laws.annealing_law: warmup is 'area' or 'peak', got {warmup!r}"
        )

    parameters = (
        _law.Parameter("L0"),
        _law.Parameter("A"),
        _exponent(),
        _law.Parameter("C"),
    )
    settings = {"decay": decay, "warmup": warmup}
    form = _annealing_form(decay)
    if warmup == "area":
        return _law.Law("annealing", parameters, _losses_of(form), settings, form)
    losses = _losses_of(form, whole_warmup=True)
    return _law.Law("annealing", parameters, losses, settings)


def progress_law() -> _law.Law:
    """The annealing law with progress that grows more slowly than the rate.

        L = L0 + A S^-alpha - B D
        S = sum of (rate / peak)^power
        D = sum over the falls of the rate of fall n / (n + tau),
            n the updates since the fall

    A run at a third of the rate makes more than a third of the progress: `power` is
    below 1. In the annealing law it is 1, and the gain from annealing has to make up
    for it, which holds for the curves that were fitted and not for the next one. A fall
    pays half of its gain in tau updates and the rest slowly; in the annealing law the
    rest comes as fast, which makes a cliff at the end of a run look better than it is.
    To be followed update by update, n / (n + tau), the mean of 1 - exp(-x n / tau) over
    exponentially distributed x, is taken over six Gauss-Laguerre nodes.
    Two curves hardly tell `power` and `tau`; a prior holds them near 0.3, give or take
    0.2, and a fortieth of the longest curve, times or divided by e^0.5.

    Returns:
      The law; parameters L0, A, alpha, B, tau (steps), power. The peak is that of the
      curves fitted.

    Example:
      >>> from optlab import laws
      >>> laws.progress_law().names
      ('L0', 'A', 'alpha', 'B', 'tau', 'power')

    Source:
      Written for this library, after the annealing law, arXiv:2408.11029. Falls that
      pay slowly are after K. Luo et al., 2025, arXiv:2503.12811. Unpublished: how it
      was chosen and how far it can be trusted is in the documentation of schedules.
    """
    parameters = (
        _law.Parameter("L0"),
        _law.Parameter("A"),
        _exponent(),
        _law.Parameter("B"),
        _law.Parameter("tau", (RESPONSE[0],), (1e-4, 1.0), RESPONSE, counts_steps=True),
        _law.Parameter("power", (POWER[0],), (0.05, 1.5), POWER),
    )
    losses = _losses_of(_progress_form)
    return _law.Law("progress", parameters, losses, {}, _progress_form)


def _exponent() -> _law.Parameter:
    return _law.Parameter("alpha", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), (0.0, 3.0))


def _power_form(params):
    del params
    return _law.Form()


# A function's identity is the key of what is compiled from it.
@functools.cache
def _annealing_form(decay: float):
    # The sum of a fall's delays: S2 as the authors count it.
    share = 1 / (1 - decay)
    return lambda params: _law.Form(decays=(decay,), shares=(share,), gain=params["C"])


def _progress_form(params):
    # Relative to the peak of the fit, A does not depend on the power.
    decays = jnp.exp(-NODES / params["tau"])
    return _law.Form(params["peak"], params["power"], decays, SHARES, params["B"])


@functools.cache
def _losses_of(form, whole_warmup: bool = False) -> _law.Losses:
    """The losses of a law of this form; the warm-up may count as at the peak."""

    def losses(params, rate, warmup_steps, step):
        found, counted = form(params), rate
        if whole_warmup:
            rising = jnp.arange(rate.shape[-1]) < warmup_steps
            counted = jnp.where(rising, jnp.max(rate), rate)
        area = _sums.started(_sums.progress(counted / found.unit, found.power))
        fallen = _sums.paid_falls(rate, found.decays, found.shares, warmup_steps)
        return found.loss(params, area, fallen)[step - 1]

    return losses
