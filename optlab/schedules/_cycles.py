"""Repeated decay, each time from a peak of its own and with a warm-up of its own."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab.schedules import _checks, _phases, shapes


def cycles(
    peak: float | jax.Array | Sequence[float | jax.Array],
    *,
    cycle_steps: Sequence[int],
    warmup_steps: int | Sequence[int] = 0,
    init_value: float | jax.Array = 0.0,
    end_value: float | jax.Array = 0.0,
    decay: shapes.Decay = shapes.cosine,
) -> optax.Schedule:
    """Repeats warm-up and decay: warm restarts, or re-warming for new data.

    Without warm-ups the rate jumps to the peak where a cycle begins (SGDR); with them
    it rises from the end value (re-warmed cosine). With t the updates already applied
    since the cycle i began, T_i its length and W_i its warm-up,

        rate = end + (peak_i - end) t / W_i                           t < W_i
        rate = end + (peak_i - end) shape((T_i - t) / (T_i - W_i))    W_i <= t < T_i

    but the first cycle rises from `init_value`. At t = W_i it is exactly the peak, from
    the end of the last cycle on exactly the end value.

    Args:
      peak: Largest rate: a number or a scalar array, or one for each cycle; they may be
        traced.
      cycle_steps: Lengths T_i in steps, warm-ups included.
      warmup_steps: Lengths W_i of the warm-ups in steps: one for all, or one for each.
      init_value: Rate at step 0 when the first cycle has a warm-up.
      end_value: Rate between cycles and after the last one, at most the peak.
      decay: Shape of each decay, as in `schedules.wsd`.

    Returns:
      Schedule, step -> rate, shape of the step, float32 (float64 with 64-bit types).

    Raises:
      ValueError: If a warm-up fills its cycle, numbers of cycles differ, or the end
        value exceeds a peak.
      TypeError: If a number of steps is not an integer.

    Example:
      >>> from optlab import schedules
      >>> # each cycle twice as long and half as high as the one before
      >>> rate = schedules.cycles(
      ...     [2.0**-i for i in range(3)], cycle_steps=[4 * 2**i for i in range(3)]
      ... )
      >>> print(*(rate(t).round(4) for t in (0, 2, 4, 8, 12, 20, 28, 99)))
      1.0 0.5 0.5 0.25 0.25 0.125 0.0 0.0

    Source:
      Loshchilov and Hutter, "SGDR", 2017, arXiv:1608.03983; re-warming: Ibrahim et al.,
      2024, arXiv:2403.08763.
    """
    who = "schedules.cycles"
    if isinstance(cycle_steps, int):
        raise TypeError(
            f"{who}: cycle_steps holds the length of every cycle, got {cycle_steps};"
            f" for four equal cycles write [{cycle_steps}] * 4"
        )
    lengths = [_checks.whole(who, "cycle_steps", n, 1) for n in cycle_steps]
    if not lengths:
        raise ValueError(f"{who}: cycle_steps is empty")
    _checks.whole(who, "the sum of cycle_steps", sum(lengths), 1)
    warmups = _warmups(who, warmup_steps, lengths)
    tops = _one_for_each(who, "peak", peak, lengths)
    for top in tops:
        _checks.falls(who, top, end_value)
        _phases.shape_between(who, decay, top, end_value)  # checks the end value
    starts = [0, *itertools.accumulate(lengths[:-1])]
    falls = [length - rise for length, rise in zip(lengths, warmups, strict=True)]

    def rate(count: jax.Array) -> jax.Array:
        index = jnp.searchsorted(jnp.asarray(starts, jnp.int32), count, side="right")
        index = jnp.maximum(index - 1, 0)

        def here(each: Sequence[Any]) -> jax.Array:
            return jnp.asarray(each)[index]

        def fraction(part: jax.Array, full: list[int]) -> jax.Array:
            # Reciprocals made here: a division by a number that is looked up is
            # compiled in more than one way, and its last bit would depend on that.
            share = part * here([1 / max(n, 1) for n in full])
            return jnp.where(part == here(full), 1.0, share)

        since = count - here(starts)
        up = fraction(since, warmups)
        left = fraction(jnp.clip(here(lengths) - since, 0, here(falls)), falls)
        top = jnp.stack([jnp.asarray(each, float) for each in tops])[index]
        down = _phases.shape_between(who, decay, top, end_value)(left)
        rising = since < here(warmups)
        return _phases.between(top, end_value, jnp.where(rising, up, down))

    return _phases.warmed(
        who, tops[0], rate, warmup_steps=warmups[0], init_value=init_value
    )


def _warmups(who: str, warmup_steps: Any, lengths: list[int]) -> list[int]:
    """Returns one warm-up for each cycle, or raises if they do not fit."""
    warmups = [
        _checks.whole(who, "warmup_steps", n, 0)
        for n in _one_for_each(who, "warmup_steps", warmup_steps, lengths)
    ]
    for i, (warmup, length) in enumerate(zip(warmups, lengths, strict=True)):
        if warmup >= length:
            raise ValueError(
                f"{who}: cycle {i} has warmup_steps={warmup}, which leaves nothing of"
                f" its {length} steps"
            )
    return warmups


def _one_for_each(who: str, name: str, given: Any, lengths: list[int]) -> list[Any]:
    """Returns a list with an entry for each cycle."""
    if not isinstance(given, Sequence) and jnp.ndim(given) == 0:
        return [given] * len(lengths)
    if len(given) != len(lengths):
        raise ValueError(
            f"{who}: {name} has {len(given)} entries for {len(lengths)} cycles; give"
            " one for all, or one for each"
        )
    return list(given)
