"""Schedules of pytorch_optimizer."""

from optlab import schedules
from tests.golden.adapters import decays
from tests.golden.comparing import Curve
from tests.golden.reading import Case
from tests.golden.settings import Settings


def pytorch_optimizer_wsd(values: Settings, case: Case) -> Curve:
    peak, floor = case.meta["base_lr"], values.take("min_lr_ratio", 0.0)
    warmup, decay = values.take("num_warmup_steps"), values.take("num_decay_steps")
    total = warmup + values.take("num_stable_steps") + decay
    known = (*decays.WSD_SHAPES, "1-square")
    fall = values.take("cooldown_type", "1-sqrt", among=known)
    decays.only_half_a_wave(values, fall)
    shape = decays.WSD_SHAPES.get(fall, lambda u: 1 - (1 - u) ** 2)
    reason = decays.OWN_SHAPE if fall == "1-square" else ""
    # Only its cosine runs to the floor; the others run to 0 and then jump up to it.
    jumps = floor > 0 and fall != "cosine"
    schedule = schedules.wsd(
        peak,
        total_steps=total,
        decay_steps=decay,
        warmup_steps=warmup,
        end_value=0.0 if jumps else peak * floor,
        decay=shape,
    )
    if jumps:
        reason = f"{reason} up to the end; there the reference jumps up".strip()
    return Curve(schedule, stop=total if jumps else None, reason=reason)


def pytorch_optimizer_rex(values: Settings, case: Case) -> Curve:
    return Curve(
        schedules.rex(
            values.take("max_lr", 1.0),
            total_steps=values.take("total_steps"),
            end_value=values.take("min_lr", 0.0),
        )
    )


ADAPTERS = {
    "pytorch_optimizer get_wsd_schedule": pytorch_optimizer_wsd,
    "pytorch_optimizer REXScheduler": pytorch_optimizer_rex,
}
