"""Schedules of timm: values after scheduler.step(t)."""

import optax

from optlab import schedules
from optlab.schedules import shapes
from tests.golden.adapters import decays
from tests.golden.comparing import Curve
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings


def plumbing(values: Settings) -> None:
    if values.take("noise_range_t", None) is not None:
        raise NotInOptlabError("random noise on the rate")
    for name in ("noise_pct", "noise_std", "noise_seed"):
        values.idle(name, because="there is no noise without noise_range_t")
    values.idle("t_in_epochs", because="t is the recorded index, whatever its unit")
    values.idle("initialize", because="it concerns the optimizer's param groups")


def _timm_cycles(values: Settings) -> None:
    if (limit := values.take("cycle_limit", 1)) != 1:
        raise NotInOptlabError(f"restarts (cycle_limit={limit})")
    for name in ("cycle_mul", "cycle_decay"):
        values.idle(name, because="it acts from the second cycle on")


def _timm_decay(values: Settings, case: Case, shape: shapes.Shape, reason: str):
    """One decay of timm: the warm-up is a prefix, or covers the curve's beginning."""
    plumbing(values)
    _timm_cycles(values)
    peak, total = case.meta["base_lr"], values.take("t_initial")
    warmup, start = values.take("warmup_t", 0), values.take("warmup_lr_init", 0.0)
    floor, prefix = values.take("lr_min", 0.0), values.take("warmup_prefix", False)

    def decay(warmup_steps: int) -> optax.Schedule:
        return schedules.wsd(
            peak,
            total_steps=warmup_steps + total,
            decay_steps=total,
            warmup_steps=warmup_steps,
            init_value=start,
            end_value=floor,
            decay=shape,
        )

    if prefix or not warmup:
        return Curve(decay(warmup), reason=reason)
    cut = optax.join_schedules(
        [decay(warmup), lambda t: decay(0)(t + warmup)], [warmup]
    )
    return Curve(cut, reason=reason)


def timm_cosine(values: Settings, case: Case) -> Curve:
    k = values.take("k_decay", 1.0)
    if k == 1:
        return _timm_decay(values, case, shapes.cosine, "")
    return _timm_decay(
        values, case, lambda u: shapes.cosine(1 - (1 - u) ** k), decays.OWN_SHAPE
    )


def timm_polynomial(values: Settings, case: Case) -> Curve:
    shape, k = shapes.power(values.take("power", 0.5)), values.take("k_decay", 1.0)
    if k == 1:
        return _timm_decay(values, case, shape, "")
    return _timm_decay(
        values, case, lambda u: shape(1 - (1 - u) ** k), decays.OWN_SHAPE
    )


def timm_step(values: Settings, case: Case) -> Curve:
    plumbing(values)
    every, warmup = values.take("decay_t"), values.take("warmup_t", 0)
    start = warmup if values.take("warmup_prefix", True) else 0
    boundaries = range(start + every, len(case.arrays["values"]), every)
    schedule = schedules.step_decay(
        case.meta["base_lr"],
        boundaries=boundaries,
        factor=values.take("decay_rate", 1.0),
        warmup_steps=warmup,
        init_value=values.take("warmup_lr_init", 0.0),
    )
    return Curve(schedule)


def timm_wsd(values: Settings, case: Case) -> Curve:
    plumbing(values)
    if (stable := values.take("stable_fn", "constant")) != "constant":
        raise NotInOptlabError(f"a stable phase that falls (stable_fn={stable})")
    for name in ("stable_timescale", "stable_power"):
        values.idle(name, because="the stable phase is constant")
    ratio, power = values.take("decay_ratio", 0.1), values.take("decay_power", 0.5)
    fall = values.take("decay_fn", "1-sqrt", among=(*decays.WSD_SHAPES, "exp", "power"))
    shape, reason = {
        **{name: (shape, "") for name, shape in decays.WSD_SHAPES.items()},
        # (r^q - r) / (1 - r) with q = 1 - u is the exponential map with b = 1 / r.
        "exp": (shapes.exponential(1 / ratio), ""),
        "power": (lambda u: 1 - (1 - u) ** power, decays.OWN_SHAPE),
    }[fall]
    warmup = values.take("warmup_t", 0)
    schedule = schedules.wsd(
        case.meta["base_lr"],
        total_steps=warmup + values.take("t_initial"),
        decay_steps=values.take("decay_t"),
        warmup_steps=warmup,
        init_value=values.take("warmup_lr_init", 0.0),
        end_value=values.take("lr_min", 0.0),
        decay=shape,
    )
    return Curve(schedule, reason=reason)


ADAPTERS = {
    "timm.scheduler.PolyLRScheduler": timm_polynomial,
    "timm.scheduler.StepLRScheduler": timm_step,
    "timm.scheduler.WSDLRScheduler": timm_wsd,
}
