"""First-order optimizers on digits and on text, each tuned alike.

    python benchmarks/first_order.py --out runs/first_order --jobs 2
    python benchmarks/first_order.py --report

A method has two settings of its averages: those of its paper, and shorter ones. Each
setting has a grid of rates in factors of two, which grows until the best rate lies
inside; at the best of all, three other seeds are run. AdamW and NAdamW have six
settings. The first command runs what is not in the folder yet and writes the
numbers to `benchmarks/first_order.json`; the second prints the tables from there.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import grids
import optax
import parallel
import races

from optlab import catalog, links, optimizers, schedules, wrappers
from optlab.lab import runs, workloads

RECORD = pathlib.Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer and what its sweep begins with.

    Attributes:
      build: From a rate and settings to the optimizer.
      rate: Middle of the first three rates.
      settings: What is tried beside the rate.
      size: Size of the text model; "lecun" begins without zeros.
    """

    build: Callable[..., optax.GradientTransformation]
    rate: float
    settings: tuple[Mapping[str, Any], ...] = ({},)
    size: str = "default"


def of_row(
    name: str, rate: float, *settings: Mapping[str, Any], size: str = "default"
) -> Method:
    """Makes the method of a row of the catalogue."""

    def build(rate: Any, **more: Any) -> optax.GradientTransformation:
        return catalog.get(name).build(rate, **more)

    return Method(build, rate, settings or ({},), size)


def around_adam(
    link: Callable[[optax.GradientTransformation], optax.GradientTransformation],
) -> Method:
    """Makes a wrapper around Adam's direction; the rate is behind it."""

    def build(rate: Any, **more: Any) -> optax.GradientTransformation:
        adam = link(optax.scale_by_adam(**more))
        return optax.chain(adam, links.scale_by_learning_rate(rate))

    return Method(build, 0.01, ADAM)


# Decays of averages: the papers', and such as suit a few hundred steps.
ADAM: Any = ({}, {"b1": 0.7, "b2": 0.99})
MORE_OF_ADAM: Any = tuple(
    {"b1": b1, "b2": b2}
    for b1, b2 in ((0.9, 0.99), (0.8, 0.99), (0.5, 0.99), (0.7, 0.95))
)
MOMENTA: Any = ({"momentum": 0.9}, {"momentum": 0.7})


def _triple(condition: float) -> dict[str, float]:
    """The constants of triple momentum for a condition number, but for the rate."""
    found = optimizers.momentum_constants("triple", smoothness=condition, convexity=1.0)
    return {"beta": found.beta, "gamma": found.gamma, "delta": found.delta}


def _beside_sgd(link: optax.GradientTransformation) -> Method:
    def build(rate: Any, **more: Any) -> optax.GradientTransformation:
        return optax.chain(link, optimizers.sgd(rate, **more))

    return Method(build, 0.2, MOMENTA)


def _learned_factor(
    rate: Any, *, hyper_learning_rate: float, **more: Any
) -> optax.GradientTransformation:
    """Adam at a schedule times a factor that begins at one."""
    scheduled = optax.chain(optax.scale_by_adam(**more), optax.scale_by_schedule(rate))
    return wrappers.hypergradient(
        scheduled,
        1.0,
        hyper_learning_rate=hyper_learning_rate,
        rule="multiplicative",
    )


def _stored(kind: str) -> Method:
    def build(rate: Any, **more: Any) -> optax.GradientTransformation:
        return wrappers.state_precision(optimizers.adamw(rate, **more), kind)

    return Method(build, 0.01, ADAM)


METHODS: dict[str, Method] = {
    "adamw": of_row("adamw", 0.01, *ADAM, *MORE_OF_ADAM),
    "nadamw": of_row("nadamw", 0.01, *ADAM, *MORE_OF_ADAM),
    "adamw, lecun": of_row("adamw", 0.01, *ADAM, size="lecun"),
    "sgd": of_row("sgd", 0.2, *MOMENTA),
    "sgd, nesterov": of_row("sgd", 0.2, *({**m, "nesterov": True} for m in MOMENTA)),
    "sgdp": of_row("sgdp", 0.2, *MOMENTA),
    "sgd_sai": of_row("sgd_sai", 0.005, {}, {"b1": 0.7}),
    "lion": of_row("lion", 0.001, {}, {"b1": 0.7, "b2": 0.9}),
    "adamp": of_row("adamp", 0.01, *ADAM),
    "adabelief": of_row("adabelief", 0.01, *ADAM),
    "adabelief, not rectified": of_row(
        "adabelief", 0.01, *({**a, "rectify": False, "eps": 1e-8} for a in ADAM)
    ),
    "adan": of_row("adan", 0.02, {}, {"b1": 0.9, "b2": 0.7, "b3": 0.99}),
    "diffgrad": of_row("diffgrad", 0.01, *ADAM),
    "yogi": of_row("yogi", 0.01, *ADAM),
    "ademamix": of_row(
        "ademamix", 0.01, {}, {"b1": 0.7, "b2": 0.99, "b3": 0.99, "alpha": 2.0}
    ),
    "adopt": of_row("adopt", 0.01, *ADAM),
    "simplified_ademamix": of_row(
        "simplified_ademamix", 0.001, {}, {"b1": 0.9, "b2": 0.99, "alpha": 1.0}
    ),
    "amsgrad": of_row("amsgrad", 0.01, *ADAM),
    "adamax": of_row("adamax", 0.01, *ADAM),
    "signum": of_row("signum", 0.002, {}, {"b1": 0.7}),
    "novograd": of_row("novograd", 0.02, {}, {"b1": 0.7, "b2": 0.9}),
    "radam": of_row("radam", 0.01, *ADAM),
    "rmsprop": of_row("rmsprop", 0.005, {}, {"b2": 0.99, "momentum": 0.7}),
    "adagrad": of_row("adagrad", 0.1, {}, {"initial_square": 1e-6}),
    "lamb": of_row("lamb", 0.02, *ADAM),
    "lars": of_row("lars", 10.0, *MOMENTA),
    "adafactor": of_row("adafactor", 0.05, {}, {"b1": 0.7}),
    "exponentiated_gradient": of_row(
        "exponentiated_gradient", 1.0, *MOMENTA, size="lecun"
    ),
    "exponentiated_adamw": of_row("exponentiated_adamw", 0.02, *ADAM, size="lecun"),
    "triple_momentum": of_row("triple_momentum", 0.1, _triple(100.0), _triple(10.0)),
    "optimistic_mirror_descent": of_row("optimistic_mirror_descent", 0.2),
    "fedhyper": of_row("fedhyper", 0.1, *({**m, "normalize": True} for m in MOMENTA)),
    "cautious adam": around_adam(wrappers.cautious),
    "adam, rate learned": Method(
        _learned_factor,
        0.01,
        tuple({**a, "hyper_learning_rate": beta} for a in ADAM for beta in (0.01, 0.1)),
    ),
    "centralized sgd": _beside_sgd(optimizers.centralize_gradients()),
    "clipped sgd": _beside_sgd(optimizers.clip_coordinates(0.1)),
    "normalized and projected adamw": Method(
        lambda rate, **more: optax.chain(
            optimizers.adamw(rate, weight_decay=0.0, **more),
            optimizers.normalize_and_project(),
        ),
        0.01,
        ADAM,
        size="lecun",
    ),
    "adamw, state in bfloat16": _stored("bfloat16"),
    "adamw, state in 8 bits": _stored("8bit"),
}


@dataclasses.dataclass(frozen=True)
class Tuning:
    """All runs of a method on one workload, one after the other."""

    method: str
    workload: str

    @property
    def folder(self) -> str:
        """Names the folder."""
        return races.folder(f"{self.workload}-{self.method}")

    def run(self, out: pathlib.Path) -> dict[str, Any]:
        """Tunes, or reads back what is there."""
        return races.kept(out, lambda: tune(self.method, self.workload))


def tune(name: str, workload: str) -> dict[str, Any]:
    """Finds the best setting and rate of a method, and runs the other seeds there."""
    method, tried = METHODS[name], []
    for settings in method.settings:
        trained = trainer(name, workload, tuple(settings.items()))

        def losses_at(rates: list[float], trained: Any = trained) -> dict[float, float]:
            seeds = races.SWEEP_SEEDS[workload]
            return {
                rate: statistics.mean(trained(rate, seed)[0] for seed in seeds)
                for rate in rates
            }

        sweep = grids.tune(losses_at, (method.rate / 2, method.rate, method.rate * 2))
        best = min(sweep, key=sweep.__getitem__)
        tried.append((sweep[best], best, dict(settings), sweep, trained))
    _, rate, settings, _, trained = min(tried, key=lambda trial: trial[0])
    finals = [trained(rate, seed) for seed in races.SEEDS]
    return {
        "method": name,
        "workload": workload,
        "size": method.size,
        "settings": settings,
        "rate": rate,
        "final_loss": statistics.mean(final[0] for final in finals),
        "finals": [list(final) for final in finals],
        "sweeps": [
            {
                "settings": tested,
                "losses": {f"{r:g}": races.finite(x) for r, x in sorted(sweep.items())},
            }
            for _, _, tested, sweep, _ in tried
        ],
    }


@functools.lru_cache(maxsize=1)
def trainer(
    name: str, workload: str, settings: tuple[tuple[str, Any], ...]
) -> Callable[[float, int], tuple[float, float]]:
    """Compiles a whole run; returns the function from rate and seed to its ends."""
    method, steps = METHODS[name], races.STEPS[workload]
    task = workloads.get(
        workload, method.size if workload == "shakespeare" else "default"
    )

    def make(rate: Any) -> optax.GradientTransformation:
        schedule = schedules.linear(
            rate, total_steps=steps, warmup_steps=int(races.WARMUP * steps)
        )
        return method.build(schedule, **dict(settings))

    return races.trainer(task, steps, make)


def run_all(pool: parallel.Pool, names: list[str], workload_names: list[str]) -> None:
    """Runs what is missing and writes the numbers."""
    jobs = [Tuning(name, workload) for workload in workload_names for name in names]
    pool.finish(jobs)
    found = {}
    if RECORD.exists():
        cells = json.loads(RECORD.read_text())
        found = {(cell["workload"], cell["method"]): cell for cell in cells}
    for job in jobs:
        found[job.workload, job.method] = job.run(pool.out / job.folder)
    order = [(workload, name) for workload in races.STEPS for name in METHODS]
    runs.write_json(RECORD, [found[key] for key in order if key in found])


def report() -> str:
    """Returns a table for each workload, the lowest loss first."""
    cells = json.loads(RECORD.read_text())
    tables = []
    for workload, steps in races.STEPS.items():
        here = [cell for cell in cells if cell["workload"] == workload]
        lines = [
            f"| `{workload}`, {steps} steps | rate | settings | runs of the sweep |"
            " final loss | accuracy |",
            "| --- | ---: | --- | ---: | --- | ---: |",
        ]
        for cell in sorted(here, key=lambda cell: cell["final_loss"]):
            losses, accuracies = zip(*cell["finals"], strict=True)
            said = ", ".join(f"{k}={v:g}" for k, v in cell["settings"].items())
            tried = sum(len(sweep["losses"]) for sweep in cell["sweeps"])
            lines.append(
                f"| {cell['method']} | {cell['rate']:.3g} | {said or 'published'} |"
                f" {tried} | {statistics.mean(losses):.4f} ±"
                f" {statistics.stdev(losses):.4f} | {statistics.mean(accuracies):.1%} |"
            )
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def main() -> None:
    """Runs what is missing, or prints what there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="methods at a time")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="some only")
    parser.add_argument(
        "--workloads", nargs="+", default=list(races.STEPS), help="some only"
    )
    parser.add_argument("--report", action="store_true", help="print the tables only")
    flags = parser.parse_args()
    if not flags.report:
        if flags.out is None:
            parser.error("--out is needed: the folder of the runs")
        run_all(parallel.Pool(flags.out, flags.jobs), flags.methods, flags.workloads)
    print(report())


if __name__ == "__main__":
    main()
