"""Schedules of transformers.

The first update has rate 0, the peak comes at the end of the warm-up, as in optlab.
"""

import jax.numpy as jnp
import optax

from optlab import schedules
from tests.golden.adapters import decays
from tests.golden.comparing import Curve
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings


def transformers_linear(values: Settings, case: Case) -> Curve:
    return Curve(
        schedules.linear(
            case.meta["base_lr"],
            total_steps=values.take("num_training_steps"),
            warmup_steps=values.take("num_warmup_steps"),
        )
    )


def transformers_cosine(values: Settings, case: Case) -> Curve:
    total, warmup = values.take("num_training_steps"), values.take("num_warmup_steps")
    run = {"total_steps": total, "warmup_steps": warmup}
    cycles, peak = values.take("num_cycles", 0.5), case.meta["base_lr"]
    if cycles == 0.5:
        schedule = schedules.cosine(peak, **run)
        return Curve(schedule, stop=total + 1, reason=decays.RISES_AGAIN)

    def waves(u):
        return (1 + jnp.cos(2 * jnp.pi * cycles * (1 - u))) / 2

    schedule = schedules.wsd(peak, **run, decay_steps=total - warmup, decay=waves)
    reason = f"{decays.OWN_SHAPE}; {decays.RISES_AGAIN}"
    return Curve(schedule, stop=total + 1, reason=reason)


def transformers_hard_restarts(values: Settings, case: Case) -> Curve:
    total, warmup = values.take("num_training_steps"), values.take("num_warmup_steps")
    cycles = values.take("num_cycles", 1)
    length = decays.whole((total - warmup) / cycles, "a cycle")
    lengths = [warmup + length, *[length] * (cycles - 1)]
    warmups = [warmup, *[0] * (cycles - 1)]
    return Curve(
        schedules.cycles(
            case.meta["base_lr"], cycle_steps=lengths, warmup_steps=warmups
        )
    )


def transformers_inverse_sqrt(values: Settings, case: Case) -> Curve:
    return Curve(
        schedules.inverse_sqrt(
            case.meta["base_lr"],
            warmup_steps=values.take("num_warmup_steps"),
            timescale=values.take("timescale", None),
        )
    )


def _floor(values: Settings, peak: float) -> float:
    absolute, rate = values.take("min_lr", None), values.take("min_lr_rate", None)
    return peak * rate if absolute is None else absolute


def transformers_cosine_min_lr(values: Settings, case: Case) -> Curve:
    decays.only_half_a_wave(values)
    peak, total = case.meta["base_lr"], values.take("num_training_steps")
    schedule = schedules.cosine(
        peak,
        total_steps=total,
        warmup_steps=values.take("num_warmup_steps"),
        end_value=_floor(values, peak),
    )
    return Curve(schedule, stop=total + 1, reason=decays.RISES_AGAIN)


def transformers_cosine_warmup_lr_rate(values: Settings, case: Case) -> Curve:
    # Here the peak comes one step earlier, at num_warmup_steps - 1, and so does the
    # end; the warm-up starts at warmup_lr_rate or at 1 / num_warmup_steps.
    decays.only_half_a_wave(values)
    peak, total = case.meta["base_lr"], values.take("num_training_steps")
    warmup, start = values.take("num_warmup_steps"), values.take("warmup_lr_rate", None)
    if warmup < (1 if start is None else 2):
        raise NotInOptlabError(f"a peak before step 0 (num_warmup_steps={warmup})")
    schedule = schedules.cosine(
        peak,
        total_steps=total - 1,
        warmup_steps=warmup - 1,
        init_value=peak * (1 / warmup if start is None else start),
        end_value=_floor(values, peak),
    )
    return Curve(schedule, stop=total, reason=decays.RISES_AGAIN)


def transformers_polynomial(values: Settings, case: Case) -> Curve:
    return Curve(
        schedules.polynomial(
            case.meta["base_lr"],
            total_steps=values.take("num_training_steps"),
            warmup_steps=values.take("num_warmup_steps"),
            power=values.take("power", 1.0),
            end_value=values.take("lr_end", 1e-7),
        )
    )


def transformers_wsd(values: Settings, case: Case) -> Curve:
    peak = case.meta["base_lr"]
    floor = peak * values.take("min_lr_ratio", 0.0)
    warmup, decay = values.take("num_warmup_steps"), values.take("num_decay_steps")
    total = values.take("num_training_steps", None)
    stable = values.take("num_stable_steps", None)
    if stable is not None:  # it wins where both are given
        total = warmup + stable + decay
    rise = values.take("warmup_type", "linear", among=decays.WSD_SHAPES)
    fall = values.take("decay_type", "cosine", among=decays.WSD_SHAPES)
    decays.only_half_a_wave(values, fall)
    # A curved warm-up is the same shape run backwards, from the floor up.
    curved = warmup and rise != "linear"
    schedule = schedules.wsd(
        peak,
        total_steps=total - warmup if curved else total,
        decay_steps=decay,
        warmup_steps=0 if curved else warmup,
        init_value=floor,
        end_value=floor,
        decay=decays.WSD_SHAPES[fall],
    )
    if curved:
        schedule = optax.join_schedules(
            [
                lambda t: floor + (peak - floor) * decays.WSD_SHAPES[rise](t / warmup),
                schedule,
            ],
            [warmup],
        )
    return Curve(schedule)


_PREFIX = "transformers.optimization.get_"
_COSINE_MIN_LR = f"{_PREFIX}cosine_with_min_lr_schedule_with_warmup"

ADAPTERS = {
    f"{_PREFIX}linear_schedule_with_warmup": transformers_linear,
    f"{_PREFIX}cosine_schedule_with_warmup": transformers_cosine,
    f"{_PREFIX}cosine_with_hard_restarts_schedule_with_warmup": (
        transformers_hard_restarts
    ),
    f"{_PREFIX}inverse_sqrt_schedule": transformers_inverse_sqrt,
    _COSINE_MIN_LR: transformers_cosine_min_lr,
    f"{_COSINE_MIN_LR}_lr_rate": transformers_cosine_warmup_lr_rate,
    f"{_PREFIX}polynomial_decay_schedule_with_warmup": transformers_polynomial,
    f"{_PREFIX}wsd_schedule": transformers_wsd,
}
