"""Infinite and repeated schedules of GPT-NeoX's forks, restarts of timm."""

import functools

import jax.numpy as jnp
import optax

from optlab import schedules
from optlab.schedules import shapes
from tests.golden.adapters import decays, timm_schedules
from tests.golden.comparing import Curve
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings

ONE_STEP_LATE = "optlab's phases; the reference cools down from the step after the peak"


# Forks of GPT-NeoX: n counts the steps from the end of the warm-up.


def gptneox(values: Settings, case: Case) -> Curve:
    style = values.take("decay_style", among=GPTNEOX)
    return GPTNEOX[style](values, case)


def _in_steps(shape: str, values: Settings, case: Case) -> Curve:
    # This fork gives the lengths of cool-down and stable phase.
    cooldown = shapes.cosine
    if shape == "inverse_sqrt":
        cooldown = shapes.inverse_sqrt(float(values.take("timescale")))
    cool, warmup = values.take("cooldown_iters"), values.take("warmup_iter")
    start = warmup + cool + values.take("constant_iters")
    schedule = schedules.infinite(
        values.take("start_lr"),
        stable_value=values.take("constant_lr"),
        end_value=values.take("min_lr"),
        warmup_steps=warmup,
        cooldown_steps=cool,
        annealing_start=start,
        annealing_steps=values.take("total_iters") - start,
        cooldown=cooldown,
    )
    return Curve(schedule)


def _in_parts(shape: str, values: Settings, case: Case) -> Curve:
    # This fork gives the ends of both phases as parts of the total, counted by n. Its
    # inverse square root, 1 / sqrt(n), begins at n = 1 and ends with the stable phase.
    peak, warmup = values.take("start_lr"), values.take("warmup_iter")
    total = values.take("total_iters")
    cool = decays.whole(total * values.take("cooldown_iters_percent"), "a cool-down")
    stay = decays.whole(total * values.take("constant_iters_percent"), "a stable phase")
    build = functools.partial(
        schedules.infinite,
        peak,
        stable_value=values.take("constant_lr"),
        end_value=values.take("min_lr"),
        annealing_steps=total - warmup - stay,
    )
    if shape == "linear":
        schedule = build(
            warmup_steps=warmup,
            cooldown_steps=cool,
            annealing_start=warmup + stay,
            cooldown=shapes.linear,
        )
        return Curve(schedule)
    late = build(
        cooldown_steps=stay - 1,
        annealing_start=stay - 1,
        cooldown=shapes.inverse_sqrt(stay - 1.0),
    )
    rise = optax.join_schedules(
        [lambda t: peak * jnp.minimum(t / max(warmup, 1), 1), late], [warmup + 1]
    )
    return Curve(rise, reason=ONE_STEP_LATE)


def _repeated(values: Settings, case: Case) -> Curve:
    repeats, total = values.take("num_repeats"), values.take("total_iters")
    schedule = schedules.cycles(
        values.take("start_lr"),
        cycle_steps=[decays.whole(total / repeats, "a cycle")] * repeats,
        warmup_steps=values.take("warmup_iter"),
        end_value=values.take("min_lr"),
    )
    return Curve(schedule)


GPTNEOX = {
    "infinite_cosine": functools.partial(_in_steps, "cosine"),
    "infinite_inv_sqrt": functools.partial(_in_steps, "inverse_sqrt"),
    "constant_infinite": functools.partial(_in_parts, "linear"),
    "inverse_sqrt_infinite": functools.partial(_in_parts, "inverse_sqrt"),
    "cosine-inf": _repeated,
}


# timm: each cycle cycle_mul times as long and cycle_decay times as high as the last.


def timm_cosine(values: Settings, case: Case) -> Curve:
    limit = values.take("cycle_limit", 1)
    if limit == 1:
        return timm_schedules.timm_cosine(values, case)
    timm_schedules.plumbing(values)
    if (k := values.take("k_decay", 1.0)) != 1:
        raise NotInOptlabError(f"restarts of a bent cosine (k_decay={k})")
    first, factor = values.take("t_initial"), values.take("cycle_mul", 1.0)
    recorded = len(case.arrays["values"])
    lengths = decays.cover(first, factor, recorded, limit or recorded)
    decay, warmup = values.take("cycle_decay", 1.0), values.take("warmup_t", 0)
    if warmup and not values.take("warmup_prefix", False):
        raise NotInOptlabError("a warm-up that covers the beginning of a cycle")
    schedule = schedules.cycles(
        [case.meta["base_lr"] * decay**i for i in range(len(lengths))],
        cycle_steps=[lengths[0] + warmup, *lengths[1:]],
        warmup_steps=[warmup] + [0] * (len(lengths) - 1),
        init_value=values.take("warmup_lr_init", 0.0),
        end_value=values.take("lr_min", 0.0),
    )
    return Curve(schedule)


ADAPTERS = {
    "AnnealingLR (decay_style given in hyperparameters)": gptneox,
    "timm.scheduler.CosineLRScheduler": timm_cosine,
}
