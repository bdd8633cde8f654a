"""Schedules of transformers, torch, timm and pytorch_optimizer.

The json of a schedule holds only what was passed; the defaults here are those of the
reference's signature.
"""

import optax

from optlab import schedules
from optlab.schedules import shapes
from tests.golden.comparing import Curve
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings

RISES_AGAIN = "up to the last step; then the reference rises again, optlab holds"
OWN_SHAPE = "optlab's phases; the adapter supplies the shape"


def _power(exponent: float) -> tuple[shapes.Shape, str]:
    """Shape of polynomial decay, u^p, and what to say about it."""
    if exponent == 1:
        return shapes.linear, ""
    return (lambda u: u**exponent), OWN_SHAPE


def _only_half_a_wave(values: Settings, shape: str = "cosine") -> None:
    if shape != "cosine":
        values.idle("num_cycles", because="only a cosine has cycles")
    elif (cycles := values.take("num_cycles", 0.5)) != 0.5:
        raise NotInOptlabError(f"a cosine of {cycles} cycles")


# transformers.optimization: the first update has rate 0, the peak comes at the end of
# the warm-up, as in optlab.


def transformers_linear(values: Settings, case: Case) -> Curve:
    return Curve(
        schedules.linear(
            case.meta["base_lr"],
            total_steps=values.take("num_training_steps"),
            warmup_steps=values.take("num_warmup_steps"),
        )
    )


def transformers_cosine(values: Settings, case: Case) -> Curve:
    _only_half_a_wave(values)
    total = values.take("num_training_steps")
    schedule = schedules.cosine(
        case.meta["base_lr"],
        total_steps=total,
        warmup_steps=values.take("num_warmup_steps"),
    )
    return Curve(schedule, stop=total + 1, reason=RISES_AGAIN)


def _floor(values: Settings, peak: float) -> float:
    absolute, rate = values.take("min_lr", None), values.take("min_lr_rate", None)
    return peak * rate if absolute is None else absolute


def transformers_cosine_min_lr(values: Settings, case: Case) -> Curve:
    _only_half_a_wave(values)
    peak, total = case.meta["base_lr"], values.take("num_training_steps")
    schedule = schedules.cosine(
        peak,
        total_steps=total,
        warmup_steps=values.take("num_warmup_steps"),
        end_value=_floor(values, peak),
    )
    return Curve(schedule, stop=total + 1, reason=RISES_AGAIN)


def transformers_cosine_warmup_lr_rate(values: Settings, case: Case) -> Curve:
    # Here the peak comes one step earlier, at num_warmup_steps - 1, and so does the
    # end; the warm-up starts at warmup_lr_rate or at 1 / num_warmup_steps.
    _only_half_a_wave(values)
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
    return Curve(schedule, stop=total, reason=RISES_AGAIN)


def transformers_polynomial(values: Settings, case: Case) -> Curve:
    total, warmup = values.take("num_training_steps"), values.take("num_warmup_steps")
    shape, reason = _power(values.take("power", 1.0))
    schedule = schedules.wsd(
        case.meta["base_lr"],
        total_steps=total,
        decay_steps=total - warmup,
        warmup_steps=warmup,
        end_value=values.take("lr_end", 1e-7),
        decay=shape,
    )
    return Curve(schedule, reason=reason)


WSD_SHAPES = {
    "linear": shapes.linear,
    "cosine": shapes.cosine,
    "1-sqrt": shapes.one_minus_sqrt,
}


def transformers_wsd(values: Settings, case: Case) -> Curve:
    peak = case.meta["base_lr"]
    floor = peak * values.take("min_lr_ratio", 0.0)
    warmup, decay = values.take("num_warmup_steps"), values.take("num_decay_steps")
    total = values.take("num_training_steps", None)
    stable = values.take("num_stable_steps", None)
    if stable is not None:  # it wins where both are given
        total = warmup + stable + decay
    rise = values.take("warmup_type", "linear", among=WSD_SHAPES)
    fall = values.take("decay_type", "cosine", among=WSD_SHAPES)
    _only_half_a_wave(values, fall)
    # A curved warm-up is the same shape run backwards, from the floor up.
    curved = warmup and rise != "linear"
    schedule = schedules.wsd(
        peak,
        total_steps=total - warmup if curved else total,
        decay_steps=decay,
        warmup_steps=0 if curved else warmup,
        init_value=floor,
        end_value=floor,
        decay=WSD_SHAPES[fall],
    )
    if curved:
        schedule = optax.join_schedules(
            [
                lambda t: floor + (peak - floor) * WSD_SHAPES[rise](t / warmup),
                schedule,
            ],
            [warmup],
        )
    return Curve(schedule)


# torch.optim.lr_scheduler


def torch_linear(values: Settings, case: Case) -> Curve:
    base, steps = case.meta["base_lr"], values.take("total_iters", 5)
    start = base * values.take("start_factor", 1 / 3)
    end = base * values.take("end_factor", 1.0)
    if start < end:  # a warm-up, then one step of a decay that does not decay
        schedule = schedules.linear(
            end,
            total_steps=steps + 1,
            warmup_steps=steps,
            init_value=start,
            end_value=end,
        )
    else:
        schedule = schedules.linear(start, total_steps=steps, end_value=end)
    return Curve(schedule)


def torch_cosine(values: Settings, case: Case) -> Curve:
    total = values.take("T_max")
    schedule = schedules.cosine(
        case.meta["base_lr"],
        total_steps=total,
        end_value=values.take("eta_min", 0.0),
    )
    return Curve(schedule, stop=total + 1, reason=RISES_AGAIN)


def torch_polynomial(values: Settings, case: Case) -> Curve:
    total = values.take("total_iters", 5)
    shape, reason = _power(values.take("power", 1.0))
    schedule = schedules.wsd(
        case.meta["base_lr"], total_steps=total, decay_steps=total, decay=shape
    )
    return Curve(schedule, reason=reason)


# timm.scheduler: values after scheduler.step(t)


def _timm_plumbing(values: Settings) -> None:
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
    _timm_plumbing(values)
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
        values, case, lambda u: shapes.cosine(1 - (1 - u) ** k), OWN_SHAPE
    )


def timm_polynomial(values: Settings, case: Case) -> Curve:
    power, k = values.take("power", 0.5), values.take("k_decay", 1.0)
    if k == 1:
        return _timm_decay(values, case, *_power(power))
    return _timm_decay(values, case, lambda u: (1 - (1 - u) ** k) ** power, OWN_SHAPE)


def timm_wsd(values: Settings, case: Case) -> Curve:
    _timm_plumbing(values)
    if (stable := values.take("stable_fn", "constant")) != "constant":
        raise NotInOptlabError(f"a stable phase that falls (stable_fn={stable})")
    for name in ("stable_timescale", "stable_power"):
        values.idle(name, because="the stable phase is constant")
    ratio, power = values.take("decay_ratio", 0.1), values.take("decay_power", 0.5)
    fall = values.take("decay_fn", "1-sqrt", among=(*WSD_SHAPES, "exp", "power"))
    shape, reason = {
        **{name: (shape, "") for name, shape in WSD_SHAPES.items()},
        # (r^q - r) / (1 - r) with q = 1 - u is the exponential map with b = 1 / r.
        "exp": (shapes.exponential(1 / ratio), ""),
        "power": (lambda u: 1 - (1 - u) ** power, OWN_SHAPE),
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


# pytorch_optimizer


def pytorch_optimizer_wsd(values: Settings, case: Case) -> Curve:
    peak, floor = case.meta["base_lr"], values.take("min_lr_ratio", 0.0)
    warmup, decay = values.take("num_warmup_steps"), values.take("num_decay_steps")
    total = warmup + values.take("num_stable_steps") + decay
    known = (*WSD_SHAPES, "1-square")
    fall = values.take("cooldown_type", "1-sqrt", among=known)
    _only_half_a_wave(values, fall)
    shape = WSD_SHAPES.get(fall, lambda u: 1 - (1 - u) ** 2)
    reason = OWN_SHAPE if fall == "1-square" else ""
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
    total = values.take("total_steps")
    schedule = schedules.wsd(
        values.take("max_lr", 1.0),
        total_steps=total,
        decay_steps=total,
        end_value=values.take("min_lr", 0.0),
        decay=shapes.moebius(0.5),
    )
    return Curve(schedule)


_TRANSFORMERS = "transformers.optimization.get_"
_COSINE_MIN_LR = f"{_TRANSFORMERS}cosine_with_min_lr_schedule_with_warmup"

ADAPTERS = {
    f"{_TRANSFORMERS}linear_schedule_with_warmup": transformers_linear,
    f"{_TRANSFORMERS}cosine_schedule_with_warmup": transformers_cosine,
    _COSINE_MIN_LR: transformers_cosine_min_lr,
    f"{_COSINE_MIN_LR}_lr_rate": transformers_cosine_warmup_lr_rate,
    f"{_TRANSFORMERS}polynomial_decay_schedule_with_warmup": transformers_polynomial,
    f"{_TRANSFORMERS}wsd_schedule": transformers_wsd,
    "torch.optim.lr_scheduler.LinearLR": torch_linear,
    "torch.optim.lr_scheduler.CosineAnnealingLR": torch_cosine,
    "torch.optim.lr_scheduler.PolynomialLR": torch_polynomial,
    "timm.scheduler.CosineLRScheduler": timm_cosine,
    "timm.scheduler.PolyLRScheduler": timm_polynomial,
    "timm.scheduler.WSDLRScheduler": timm_wsd,
    "pytorch_optimizer get_wsd_schedule": pytorch_optimizer_wsd,
    "pytorch_optimizer REXScheduler": pytorch_optimizer_rex,
}
