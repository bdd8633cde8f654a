"""Schedules of torch.optim.lr_scheduler."""

from optlab import schedules
from optlab.schedules import shapes
from tests.golden.adapters import decays
from tests.golden.comparing import Curve
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings


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
    return Curve(schedule, stop=total + 1, reason=decays.RISES_AGAIN)


def torch_warm_restarts(values: Settings, case: Case) -> Curve:
    steps = len(case.arrays["values"])
    lengths = decays.cover(
        values.take("T_0"), values.take("T_mult", 1), steps, limit=steps
    )
    schedule = schedules.cycles(
        case.meta["base_lr"],
        cycle_steps=lengths,
        end_value=values.take("eta_min", 0.0),
    )
    return Curve(schedule, stop=sum(lengths))


def torch_polynomial(values: Settings, case: Case) -> Curve:
    return Curve(
        schedules.polynomial(
            case.meta["base_lr"],
            total_steps=values.take("total_iters", 5),
            power=values.take("power", 1.0),
        )
    )


def torch_exponential(values: Settings, case: Case) -> Curve:
    # Told by its factor, not by where it ends: the end is that of the record.
    peak, last = case.meta["base_lr"], len(case.arrays["values"]) - 1
    end = peak * values.take("gamma") ** last
    return Curve(schedules.exponential(peak, total_steps=last, end_value=end))


def torch_multistep(values: Settings, case: Case) -> Curve:
    return Curve(
        schedules.step_decay(
            case.meta["base_lr"],
            boundaries=values.take("milestones"),
            factor=values.take("gamma", 0.1),
        )
    )


def _momentum(values: Settings) -> None:
    for name in ("cycle_momentum", "base_momentum", "max_momentum"):
        values.idle(name, because="the rate does not depend on the momentum")


def torch_cyclic(values: Settings, case: Case) -> Curve:
    _momentum(values)
    up = values.take("step_size_up", 2000)
    down = values.take("step_size_down", None) or up
    low, top = values.take("base_lr"), values.take("max_lr")
    modes = ("triangular", "triangular2", "exp_range")
    if (mode := values.take("mode", "triangular", among=modes)) == "exp_range":
        raise NotInOptlabError("a cycle whose peak shrinks at every step")
    values.idle("gamma", because="only the mode exp_range has it")
    shrink = 0.5 if mode == "triangular2" else 1.0
    steps = len(case.arrays["values"])
    lengths = decays.cover(up + down, 1, steps, limit=steps)
    schedule = schedules.cycles(
        [low + (top - low) * shrink**i for i in range(len(lengths))],
        cycle_steps=lengths,
        warmup_steps=up,
        init_value=low,
        end_value=low,
        decay=shapes.linear,
    )
    return Curve(schedule)


def torch_one_cycle(values: Settings, case: Case) -> Curve:
    _momentum(values)
    total, part = values.take("total_steps"), values.take("pct_start", 0.3)
    # Each stretch ends one step before its share of the whole does.
    rise = decays.whole(part * total - 1, "a rise")
    three = values.take("three_phase", False)
    shape = values.take("anneal_strategy", "cos", among=("cos", "linear"))
    schedule = schedules.one_cycle(
        values.take("max_lr"),
        total_steps=total - 1,
        warmup_steps=rise,
        final_steps=total - 1 - 2 * rise if three else 0,
        div_factor=values.take("div_factor", 25.0),
        final_div_factor=values.take("final_div_factor", 1e4),
        shape=shapes.cosine if shape == "cos" else shapes.linear,
    )
    return Curve(schedule)


_PREFIX = "torch.optim.lr_scheduler."

ADAPTERS = {
    f"{_PREFIX}LinearLR": torch_linear,
    f"{_PREFIX}CosineAnnealingLR": torch_cosine,
    f"{_PREFIX}CosineAnnealingWarmRestarts": torch_warm_restarts,
    f"{_PREFIX}CyclicLR": torch_cyclic,
    f"{_PREFIX}ExponentialLR": torch_exponential,
    f"{_PREFIX}MultiStepLR": torch_multistep,
    f"{_PREFIX}OneCycleLR": torch_one_cycle,
    f"{_PREFIX}PolynomialLR": torch_polynomial,
}
