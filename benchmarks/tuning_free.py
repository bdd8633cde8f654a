"""Methods that set their own rate, as published and at settings of another task.

    python benchmarks/tuning_free.py --out runs/tuning_free --jobs 1
    python benchmarks/tuning_free.py --report

A method has its published setting and three others, each with one thing changed. The
best on digits is tested on text and the best on text on digits, with three other
seeds; so is the published one, on both. AdamW has six rates, and is also tested as the
sweeps of `first_order.py` tuned it. Last, Muon starts from rates of a hundredth to ten
times its tuned ones, as it is and with a learned rate. The first command runs what is
not in the folder yet and writes the numbers to `benchmarks/tuning_free.json`; the
second prints the tables from there.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
import parallel
import races

from optlab import catalog, optimizers, schedules, wrappers
from optlab.lab import runs, workloads

RECORD = pathlib.Path(__file__).with_suffix(".json")
TUNED = RECORD.with_name("first_order.json")
SWEPT = "adamw, all of its sweep"
Setting = Mapping[str, Any]
Ends = tuple[float, float]


def schedule(kind: str, steps: int) -> optax.Schedule:
    """Makes the factors on a rate."""
    warmup = int(races.WARMUP * steps)
    match kind:
        case "constant":
            return schedules.constant(1.0)
        case "warm-up":
            return schedules.constant(1.0, warmup_steps=warmup)
        case "linear":
            return schedules.linear(1.0, total_steps=steps, warmup_steps=warmup)
        case "linear, no warm-up":
            return schedules.linear(1.0, total_steps=steps)
        case "cosine":
            return schedules.cosine(1.0, total_steps=steps)
    raise ValueError(f"no schedule {kind!r}")


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer and its settings.

    Attributes:
      build: From a schedule and the numbers of a setting to the optimizer.
      settings: The published one first. "schedule" is the factors on "rate", which is
        `rate` in settings without one.
      rate: Factor or rate as published.
      evaluated: From state and parameters to those to evaluate.
    """

    build: Callable[..., optax.GradientTransformation]
    settings: tuple[Setting, ...]
    rate: float = 1.0
    evaluated: Callable[[Any, Any], Any] | None = None


def one_changed(**axes: tuple[Any, ...]) -> tuple[Setting, ...]:
    """Makes the setting of all first values, and those that differ in one value."""
    first = {name: values[0] for name, values in axes.items()}
    others = ((name, value) for name, values in axes.items() for value in values[1:])
    return (first, *({**first, name: value} for name, value in others))


def of_row(name: str, **axes: tuple[Any, ...]) -> Method:
    """Makes the method of a row of the catalogue."""
    row = catalog.get(name)
    own = {k: v for k, v in row.defaults.items() if k != "learning_rate"}

    def build(rate: optax.Schedule, **numbers: Any) -> optax.GradientTransformation:
        return row.build(rate, **own, **numbers)

    published = row.defaults["learning_rate"]
    return Method(build, one_changed(**axes), published, row.eval_params)


def in_mechanic(inner: Callable[..., optax.GradientTransformation]) -> Method:
    """Makes Mechanic around an optimizer with a rate of 1."""

    def build(rate: optax.Schedule, **numbers: Any) -> optax.GradientTransformation:
        return wrappers.mechanic(inner(rate), **numbers)

    return Method(build, one_changed(schedule=("linear", "constant"), s_init=STARTS))


STARTS = (1e-6, 1e-4, 1e-2)
FACTORS = (1.0, 0.3, 3.0)
METHODS: dict[str, Method] = {
    "adamw": of_row(
        "adamw", schedule=("linear",), rate=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    ),
    "prodigy": of_row(
        "prodigy", schedule=("cosine", "constant"), d_coef=(1.0, 0.5, 2.0)
    ),
    **{
        name: of_row(name, schedule=("linear", "constant"), rate=FACTORS)
        for name in ("dadapt_adam", "dadapt_sgd", "dadapt_adan", "dadapt_lion")
    },
    **{
        name: of_row(name, schedule=("constant", "linear"), initial_distance=STARTS)
        for name in ("dog", "ldog", "dowg")
    },
    "momo": of_row("momo", schedule=("constant", "linear"), rate=(1.0, 4.0, 16.0)),
    "momo_adam": of_row(
        "momo_adam", schedule=("constant", "linear"), rate=(0.01, 0.03, 0.1)
    ),
    "schedule_free_sgd": of_row(
        "schedule_free_sgd", schedule=("warm-up",), r=(0.0, 0.75), rate=(1.0, 3.0, 10.0)
    ),
    "schedule_free_adamw": of_row(
        "schedule_free_adamw",
        schedule=("warm-up",),
        r=(0.0, 0.75),
        rate=(0.0025, 0.01, 0.04),
    ),
    "mechanic of adam": in_mechanic(optax.adam),
    "mechanic of sgd": in_mechanic(lambda rate: optimizers.sgd(rate, momentum=0.9)),
}


def around_muon(
    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation],
) -> Method:
    """Wraps Muon and its AdamW for the rest; one base rate scales both."""

    def build(rate: optax.Schedule) -> optax.GradientTransformation:
        rest = optimizers.adamw(lambda t: 0.045 * rate(t), b1=0.7, b2=0.99)
        return wrap(optimizers.muon(lambda t: 0.14 * rate(t), rest=rest, b1=0.85))

    settings = one_changed(
        schedule=("linear, no warm-up",), rate=(0.01, 0.1, 1.0, 10.0)
    )
    return Method(build, settings)


def learned(muon: optax.GradientTransformation) -> optax.GradientTransformation:
    """Gives Muon's rates a factor that changes by at most 0.3 of itself in a step."""
    uphill = optax.chain(muon, optax.scale(-1.0))
    return wrappers.hypergradient(
        uphill, 1.0, hyper_learning_rate=0.3, rule="multiplicative"
    )


MUON: dict[str, Method] = {
    "muon": around_muon(lambda muon: muon),
    "mechanic of muon": around_muon(wrappers.mechanic),
    "mechanic of muon, s_init 0.01": around_muon(
        functools.partial(wrappers.mechanic, s_init=0.01)
    ),
    "muon, rate learned": around_muon(learned),
}


def other(workload: str) -> str:
    """Returns the workload on which settings for this one are chosen."""
    (name,) = set(races.STEPS) - {workload}
    return name


def racer(method: Method, workload: str) -> Callable[[Setting, int], Ends]:
    """Compiles the method's runs, all settings in one program."""
    steps = races.STEPS[workload]

    def make(given: Mapping[str, Any]) -> optax.GradientTransformation:
        numbers = dict(given)
        factors, rate = numbers.pop("factors"), numbers.pop("rate", method.rate)
        return method.build(lambda t: rate * factors[t], **numbers)

    task = workloads.get(workload)
    trained = races.trainer(task, steps, make, method.evaluated)

    def run(setting: Setting, seed: int) -> Ends:
        numbers = {k: v for k, v in setting.items() if k != "schedule"}
        factors = schedule(setting["schedule"], steps)(jnp.arange(steps))
        return trained({**numbers, "factors": factors}, seed)

    return run


def calibrated(method: Method) -> dict[str, Any]:
    """Finds the best setting for each workload; tests it, and the first, elsewhere."""
    racers = {workload: racer(method, workload) for workload in races.STEPS}
    sweeps = {
        workload: [
            statistics.mean(run(s, seed)[0] for seed in races.SWEEP_SEEDS[workload])
            for s in method.settings
        ]
        for workload, run in racers.items()
    }
    chosen = {w: losses.index(min(losses)) for w, losses in sweeps.items()}
    borrowed = {w: chosen[other(w)] for w in chosen}
    return {
        "settings": method.settings,
        "sweeps": {w: list(map(races.finite, losses)) for w, losses in sweeps.items()},
        "chosen": chosen,
        "tests": {
            w: tested(run, method, sorted({0, borrowed[w]}))
            for w, run in racers.items()
        },
    }


def transferred() -> dict[str, Any]:
    """Tests AdamW as it was tuned on each workload on the other one."""
    cells = json.loads(TUNED.read_text(encoding="utf-8"))
    best = {c["workload"]: c for c in cells if c["method"] == "adamw"}
    settings = tuple(
        {"schedule": "linear", "rate": cell["rate"], **cell["settings"]}
        for cell in (best[workload] for workload in races.STEPS)
    )
    method = dataclasses.replace(METHODS["adamw"], settings=settings)
    tests = {}
    for home, workload in enumerate(races.STEPS):
        away = tested(racer(method, workload), method, [1 - home])
        tests[workload] = {str(home): best[workload]["finals"], **away}
    chosen = {workload: index for index, workload in enumerate(races.STEPS)}
    return {"settings": settings, "chosen": chosen, "tests": tests}


def from_each_rate(method: Method) -> dict[str, Any]:
    """Runs Muon on text from each base rate."""
    run, every = racer(method, "shakespeare"), list(range(len(method.settings)))
    return {
        "settings": method.settings,
        "tests": {"shakespeare": tested(run, method, every)},
    }


def tested(
    run: Callable[[Setting, int], Ends], method: Method, at: list[int]
) -> dict[str, list[list[float | None]]]:
    """Runs some of the settings with the seeds of the tests."""
    return {
        str(index): [
            list(map(races.finite, run(method.settings[index], seed)))
            for seed in races.SEEDS
        ]
        for index in at
    }


NAMES = (*METHODS, SWEPT, *MUON)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """All runs of a method, one after the other."""

    method: str

    @property
    def folder(self) -> str:
        """Names the folder."""
        return races.folder(self.method)

    def run(self, out: pathlib.Path) -> dict[str, Any]:
        """Measures, or reads back what is there."""
        return races.kept(out, self.measure)

    def measure(self) -> dict[str, Any]:
        """Runs what belongs to the method."""
        if self.method == SWEPT:
            found = transferred()
        elif self.method in MUON:
            found = from_each_rate(MUON[self.method])
        else:
            found = calibrated(METHODS[self.method])
        best = min(map(mean, found["tests"]["shakespeare"].values()))
        return {"method": self.method, "final_loss": races.finite(best), **found}


def mean(ends: list[list[float | None]]) -> float:
    """Averages the losses of some seeds; infinite if one diverged."""
    return statistics.mean(_losses(ends))


def _losses(ends: list[list[float | None]]) -> list[float]:
    return [math.inf if loss is None else loss for loss, _ in ends]


def run_all(pool: parallel.Pool, names: list[str]) -> None:
    """Runs what is missing and writes the numbers."""
    jobs = list(map(Measurement, names))
    pool.finish(jobs)
    found = {}
    if RECORD.exists():
        cells = json.loads(RECORD.read_text(encoding="utf-8"))
        found = {cell["method"]: cell for cell in cells}
    for job in jobs:
        found[job.method] = job.run(pool.out / job.folder)
    runs.write_json(RECORD, [found[name] for name in NAMES if name in found])


def said(setting: Setting) -> str:
    """Writes a setting."""
    numbers = {k: v for k, v in setting.items() if k != "schedule"}
    return ", ".join([setting["schedule"], *(f"{k} {v:g}" for k, v in numbers.items())])


def spread(ends: list[list[float | None]], digits: int) -> str:
    """Writes mean and standard deviation of the losses."""
    losses = [loss for loss in _losses(ends) if math.isfinite(loss)]
    if len(losses) < len(ends):
        return f"{len(ends) - len(losses)} of {len(ends)} diverged"
    return (
        f"{statistics.mean(losses):.{digits}f} ± {statistics.stdev(losses):.{digits}f}"
    )


def table(cells: list[dict[str, Any]], workload: str) -> str:
    """Writes how all methods did, the best with a borrowed setting first."""
    lines = [
        f"| `{workload}`, {races.STEPS[workload]} steps | as published | loss |"
        f" chosen on `{other(workload)}` | loss |",
        "| --- | --- | --- | --- | --- |",
    ]

    def borrowed(cell: dict[str, Any]) -> list[list[float | None]]:
        return cell["tests"][workload][str(cell["chosen"][other(workload)])]

    for cell in sorted(cells, key=lambda cell: mean(borrowed(cell))):
        settings, chosen = cell["settings"], cell["chosen"][other(workload)]
        if cell["method"] == SWEPT:
            chosen_here = cell["chosen"][workload]
            first = f"tuned here: {said(settings[chosen_here])}"
            loss = spread(cell["tests"][workload][str(chosen_here)], 3)
        else:
            first, loss = said(settings[0]), spread(cell["tests"][workload]["0"], 3)
        lines.append(
            f"| {cell['method']} | {first} | {loss} | {said(settings[chosen])} |"
            f" {spread(borrowed(cell), 3)} |"
        )
    return "\n".join(lines)


def table_of_muon(cells: list[dict[str, Any]]) -> str:
    """Writes where Muon ended from each base rate."""
    rates = [f"{setting['rate']:g}" for setting in cells[0]["settings"]]
    lines = [
        f"| base rates, times the tuned ones | {' | '.join(rates)} |",
        "| --- |" + " --- |" * len(rates),
    ]
    for cell in cells:
        ends = cell["tests"]["shakespeare"].values()
        losses = " | ".join(spread(each, 3) for each in ends)
        lines.append(f"| {cell['method']} | {losses} |")
    return "\n".join(lines)


def report() -> str:
    """Returns a table for each workload and that of Muon."""
    cells = json.loads(RECORD.read_text(encoding="utf-8"))
    raced = [cell for cell in cells if cell["method"] not in MUON]
    muon = [cell for cell in cells if cell["method"] in MUON]
    tables = [table(raced, workload) for workload in races.STEPS]
    return "\n\n".join(tables + ([table_of_muon(muon)] if muon else []))


def main() -> None:
    """Runs what is missing, or prints what there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="methods at a time")
    parser.add_argument("--methods", nargs="+", default=list(NAMES), help="some only")
    parser.add_argument("--report", action="store_true", help="print the tables only")
    flags = parser.parse_args()
    if not flags.report:
        if flags.out is None:
            parser.error("--out is needed: the folder of the runs")
        run_all(parallel.Pool(flags.out, flags.jobs), flags.methods)
    print(report())


if __name__ == "__main__":
    main()
