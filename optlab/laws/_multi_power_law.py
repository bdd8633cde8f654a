"""The multi-power law: every fall of the rate pays off as a power of what follows."""

import jax
import jax.numpy as jnp

from optlab.laws import _law, _sums

# Falls that follow one another are taken together, so that a curve of any length costs
# this many terms for each loss.
BLOCKS = 1024


def multi_power_law() -> _law.Law:
    """The multi-power law.

        L(t) = L0 + A S1(t)^-alpha
               - B sum_k fall_k (1 - (1 + C rate_k^-gamma S_k(t))^-beta)

    fall_k = rate_{k-1} - rate_k after the warm-up, S_k the sum of the rates from update
    k to t, S1 the whole area under the schedule, the warm-up included. A fall pays off
    at once in part, and ever more slowly.

    Returns:
      The law; parameters L0, A, alpha, B, C, beta, gamma. The last three can hardly be
      read off two curves; a prior holds them near 1, 0.5 and 0.5, where the authors'
      fit starts and stops early.

    Example:
      >>> from optlab import laws
      >>> laws.multi_power_law().names
      ('L0', 'A', 'alpha', 'B', 'C', 'beta', 'gamma')

    Source:
      Luo et al., 2025, arXiv:2503.12811, formula and published parameters checked
      against the authors' curves. Differs from their code: falls count from the end of
      the warm-up, as in the paper (their fit counts the warm-up's rise, an offset); a
      prior and L-BFGS in place of early stopping; in curves with more than 1024 falls,
      neighbours are taken together.
    """
    parameters = (
        _law.Parameter("L0"),
        _law.Parameter("A"),
        _law.Parameter("alpha", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), (0.0, 3.0)),
        _law.Parameter("B"),
        _law.Parameter("C", (1.0,), (0.01, 100.0), (1.0, 0.5)),
        _law.Parameter("beta", (0.5,), (0.05, 3.0), (0.5, 0.1)),
        _law.Parameter("gamma", (0.5,), (0.0, 1.5), (0.5, 0.1)),
    )
    return _law.Law("multi_power", parameters, _losses, {})


def _losses(params, rate, warmup_steps, step):
    area = _sums.forward_area(rate)
    decayed = params["A"] * _sums.started(area) ** -params["alpha"]
    base = params["L0"] + decayed
    fall, rates, before = _blocks(rate, area, warmup_steps)
    speed = params["C"] * rates ** -params["gamma"]

    def gain(now: jax.Array) -> jax.Array:
        since = jnp.maximum(now - before, 0.0)
        effect = -jnp.expm1(-params["beta"] * jnp.log1p(speed * since))
        return jnp.sum(fall * effect)

    gains = jax.lax.map(gain, area[step - 1], batch_size=256)
    return base[step - 1] - params["B"] * gains


def _blocks(rate, area, warmup_steps):
    """Falls, the rates after them, and the area before them, block by block."""
    fall = _sums.falls(rate, warmup_steps)
    # The area before update k is what S_k has to leave out.
    before = area - rate
    size = -(-rate.shape[-1] // BLOCKS)
    if size == 1:
        return fall, jnp.where(rate > 0, rate, 1.0), before
    pad = (0, -rate.shape[-1] % size)
    weight = jnp.abs(fall)

    def mean(x):
        total = jnp.pad(weight * x, pad).reshape(-1, size).sum(1)
        parts = jnp.pad(weight, pad).reshape(-1, size).sum(1)
        # A block without a fall has no weight; any value will do for its mean.
        return jnp.where(parts > 0, total / jnp.where(parts > 0, parts, 1.0), 0.0)

    rates = mean(rate)
    blocks = jnp.pad(fall, pad).reshape(-1, size).sum(1)
    return blocks, jnp.where(rates > 0, rates, 1.0), mean(before)
