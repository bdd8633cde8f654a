"""How hyperparameters follow the batch size."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import _checks

RULES = ("linear", "sqrt")

# A decay below this is zero but for rounding.
NO_MEMORY = 1e-6


def for_batch_size(
    learning_rate: float | jax.Array | optax.Schedule,
    batch_size: int | jax.Array,
    *,
    tuned_at: int | jax.Array,
    rule: str,
) -> Any:
    """Scales a learning rate that was tuned at another batch size.

        linear   rate (B / B0)           plain SGD, with a warm-up
        sqrt     rate sqrt(B / B0)       Adam and its relatives

    Both hold below the critical batch size only, which no rule knows. A schedule is
    scaled in value; its steps stay as they are.

    Args:
      learning_rate: Rate at the batch size `tuned_at`: a number, a scalar array or a
        schedule.
      batch_size: Batch size B to train with; it may be traced.
      tuned_at: Batch size B0 of the tuning; it may be traced.
      rule: 'linear' or 'sqrt'.

    Returns:
      The scaled rate, a schedule if a schedule was given.

    Raises:
      ValueError: If the rule is unknown or a batch size is not positive.

    Example:
      >>> from optlab import schedules
      >>> for rule in ("linear", "sqrt"):
      ...     print(schedules.for_batch_size(0.5, 1024, tuned_at=256, rule=rule))
      2.0
      1.0

    Source:
      Linear: Goyal et al., 2017, arXiv:1706.02677. Square root: Malladi et al., 2022,
      arXiv:2205.10287; Granziol et al., 2022, arXiv:2006.09092. Read second-hand,
      UNVERIFIED in the papers.
    """
    who = "schedules.for_batch_size"
    if rule not in RULES:
        raise ValueError(f"{who}: rule must be one of {RULES}, got {rule!r}")
    kappa = _ratio(who, batch_size, tuned_at)
    factor = kappa if rule == "linear" else kappa**0.5
    if not callable(learning_rate):
        return learning_rate * factor
    return lambda count: learning_rate(count) * factor


def adam_for_batch_size(
    hyperparameters: Mapping[str, Any],
    batch_size: int | jax.Array,
    *,
    tuned_at: int | jax.Array,
) -> dict[str, Any]:
    """Scales the hyperparameters of Adam that were tuned at another batch size.

    The rule of the stochastic differential equation that Adam follows: with
    kappa = B / B0 as much noise is averaged in the same time if

        rate -> rate sqrt(kappa)         1 - b -> kappa (1 - b)    for b1 and b2
        eps -> eps / sqrt(kappa)

    It ends where kappa (1 - b) reaches 1 and an average would have no memory left.

    Args:
      hyperparameters: Those at the batch size `tuned_at`, by name: any of
        'learning_rate' (a number, an array or a schedule), 'b1', 'b2', 'eps'.
      batch_size: Batch size B to train with; it may be traced.
      tuned_at: Batch size B0 of the tuning; it may be traced.

    Returns:
      The scaled ones by the same names, as in `optimizers.adamw(**scaled)`. If numbers
      are traced, a decay beyond the range is not a number.

    Raises:
      ValueError: If a batch size is not positive, a name is unknown, or a decay would
        not lie between 0 and 1.

    Example:
      >>> from optlab import schedules
      >>> tuned = {"learning_rate": 0.5, "b1": 0.875, "b2": 0.9375, "eps": 0.25}
      >>> schedules.adam_for_batch_size(tuned, 1024, tuned_at=256)
      {'learning_rate': 1.0, 'b1': 0.5, 'b2': 0.75, 'eps': 0.125}

    Source:
      Malladi et al., 2022, arXiv:2205.10287. Read second-hand, UNVERIFIED in the paper.
    """
    who = "schedules.adam_for_batch_size"
    unknown = set(hyperparameters) - {"learning_rate", "b1", "b2", "eps"}
    if unknown:
        raise ValueError(f"{who}: no rule for {sorted(unknown)}")
    kappa = _ratio(who, batch_size, tuned_at)
    scaled = dict(hyperparameters)
    if "learning_rate" in scaled:
        scaled["learning_rate"] = for_batch_size(
            scaled["learning_rate"], batch_size, tuned_at=tuned_at, rule="sqrt"
        )
    for name in ("b1", "b2"):
        if name in scaled:
            scaled[name] = _decay(who, name, scaled[name], kappa)
    if "eps" in scaled:
        scaled["eps"] = scaled["eps"] / kappa**0.5
    return scaled


def _ratio(who: str, batch_size: Any, tuned_at: Any) -> Any:
    _checks.positive(who, "batch_size", batch_size)
    _checks.positive(who, "tuned_at", tuned_at)
    return batch_size / tuned_at


def _decay(who: str, name: str, decay: Any, kappa: Any) -> Any:
    """Returns 1 - kappa (1 - decay), or raises if an average has no memory left."""
    scaled = 1 - kappa * (1 - decay)
    known = _checks.known(scaled)
    if known is None:
        return jnp.where(scaled > NO_MEMORY, scaled, jnp.nan)
    if not NO_MEMORY < known < 1:
        raise ValueError(
            f"{who}: {name}={decay} becomes {known:.4g} at {_checks.known(kappa):.4g}"
            " times the batch size; the rule holds as long as it stays between 0 and 1"
        )
    return scaled
