"""How hyperparameters follow the batch size."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab.schedules import _checks

RULES = ("linear", "sqrt", "random_matrix")

# A decay below this is zero but for rounding.
NO_MEMORY = 1e-6


def for_batch_size(
    learning_rate: float | jax.Array | optax.Schedule,
    batch_size: int | jax.Array,
    *,
    tuned_at: int | jax.Array,
    rule: str,
    eigenvalue: float | jax.Array | None = None,
    noise: float | jax.Array | None = None,
) -> Any:
    """Scales a learning rate that was tuned at another batch size.

        linear          rate (B / B0)             plain SGD, with a warm-up
        sqrt            rate sqrt(B / B0)         Adam and its relatives
        random_matrix   rate c(B0) / c(B)         SGD, c by `curvature_of_batch`

    The first two hold below the critical batch size only, which neither knows. The
    third goes by the curvature of a batch, which bounds the rate of plain descent: the
    rate grows as the square root in small batches, where c is noise, and no more in
    large ones. A schedule is scaled in value; its steps stay as they are.

    Args:
      learning_rate: Rate at the batch size `tuned_at`: a number, a scalar array or a
        schedule.
      batch_size: Batch size B to train with; it may be traced.
      tuned_at: Batch size B0 of the tuning; it may be traced.
      rule: 'linear', 'sqrt' or 'random_matrix'.
      eigenvalue: Largest eigenvalue of the Hessian of all data; for the third rule.
      noise: Noise of one example's Hessian, see `curvature_of_batch`; alike.

    Returns:
      The scaled rate, a schedule if a schedule was given.

    Raises:
      ValueError: If the rule is unknown, a number is not positive, or numbers are given
        that the rule does not use.
      TypeError: If the rule lacks one of them.

    Example:
      >>> from optlab import schedules
      >>> for rule in ("linear", "sqrt"):
      ...     print(schedules.for_batch_size(0.5, 1024, tuned_at=256, rule=rule))
      2.0
      1.0
      >>> known = {"rule": "random_matrix", "eigenvalue": 1.0, "noise": 10.0}
      >>> for size in (16, 64, 4096):
      ...     rate = schedules.for_batch_size(0.1, size, tuned_at=16, **known)
      ...     print(f"{rate:.3f}")
      0.100
      0.200
      0.488

    Source:
      Linear: Goyal et al., 2017, arXiv:1706.02677. Square root: Malladi et al., 2022,
      arXiv:2205.10287; Granziol et al., 2022, arXiv:2006.09092. Random matrix: the last
      of these. Read second-hand, UNVERIFIED in the papers.
    """
    who = "schedules.for_batch_size"
    if rule not in RULES:
        raise ValueError(f"{who}: rule must be one of {RULES}, got {rule!r}")
    kappa = _ratio(who, batch_size, tuned_at)
    if rule == "random_matrix":
        if eigenvalue is None or noise is None:
            raise TypeError(f"{who}: rule {rule!r} needs eigenvalue and noise")
        now, then = (
            curvature_of_batch(eigenvalue, size, noise=noise)
            for size in (batch_size, tuned_at)
        )
        factor = then / now
    elif eigenvalue is not None or noise is not None:
        raise ValueError(f"{who}: rule {rule!r} uses neither eigenvalue nor noise")
    else:
        factor = kappa if rule == "linear" else kappa**0.5
    if not callable(learning_rate):
        return learning_rate * factor
    return lambda count: learning_rate(count) * factor


def curvature_of_batch(
    eigenvalue: float | jax.Array,
    batch_size: int | jax.Array,
    *,
    noise: float | jax.Array,
) -> Any:
    """Returns the largest eigenvalue of the Hessian of a batch.

    A batch's Hessian is that of all data plus noise. If the noise is a symmetric matrix
    of independent entries, its own spectrum ends at twice e, and an eigenvalue above e
    stands out of it, shifted:

        e = noise / sqrt(B),   noise = sqrt(P) s
        c = eigenvalue + e^2 / eigenvalue   if eigenvalue > e,  otherwise  2 e

    Gradient descent on the batch alone is stable below the rate 2 / c.

    Args:
      eigenvalue: Largest eigenvalue of the Hessian of all data.
      batch_size: Batch size B, for drawing without replacement from N examples
        1 / (1 / B - 1 / N).
      noise: Standard deviation s of an entry of one example's Hessian, times the root
        of the number P of parameters; 0 for none.

    Returns:
      The largest eigenvalue c to expect, in units of the curvature.

    Raises:
      ValueError: If a number is not positive, or noise is negative.

    Example:
      >>> from optlab import schedules
      >>> for size in (16, 64, 256, 1024, 4096):  # P is 1e6, s is 1e-2
      ...     c = schedules.curvature_of_batch(1.0, size, noise=10.0)
      ...     print(f"{size:5d} {c:.4f}")
         16 5.0000
         64 2.5000
        256 1.3906
       1024 1.0977
       4096 1.0244

    Source:
      Granziol, Zohren, Roberts, "Learning rates as a function of batch size", 2022,
      arXiv:2006.09092. UNVERIFIED in the paper, of which the abstract was read: this is
      the known law of one spike in a Wigner matrix. Real noise is neither independent
      nor of one size.
    """
    who = "schedules.curvature_of_batch"
    _checks.positive(who, "eigenvalue", eigenvalue)
    _checks.positive(who, "batch_size", batch_size)
    known = _checks.known(noise)
    if known is not None and not ((known >= 0) & np.isfinite(known)).all():
        raise ValueError(f"{who}: noise must be 0 or more, got {noise}")
    edge = noise / batch_size**0.5
    arrays = any(isinstance(x, jax.Array) for x in (eigenvalue, edge))
    # Where an eigenvalue has drowned the law at the edge holds: e + e^2 / e.
    spike = (jnp.maximum if arrays else max)(eigenvalue, edge)
    return spike + edge**2 / spike


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
