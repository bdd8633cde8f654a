"""Matrix and low-memory optimizers against AdamW on text, each tuned alike.

    python benchmarks/matrix.py --out runs/matrix --jobs 2
    python benchmarks/matrix.py --report

The rate of the matrices is the best of a grid in factors of two, with seed 0; the grid
grows until the best rate lies inside it. The other leaves always have AdamW with the
rate that was found for Muon. Three other seeds are then run. The first command trains
what is not in the folder yet and writes the numbers to `benchmarks/matrix.json`; the
second prints the tables from there.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import statistics
from typing import Any

import grids
import jax
import optax
import parallel
from flax import nnx

from optlab import catalog, lab, optimizers, schedules
from optlab.lab import race, runs, workloads

RECORD = pathlib.Path(__file__).with_suffix(".json")
SWEEP_SEED, SEEDS = 0, (1, 2, 3)
EVAL_EVERY = 10
WORKLOAD = "shakespeare"


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer, its length, and where its sweep begins.

    Attributes:
      row: Name of its row in the catalogue.
      steps: Length of the runs.
      rates: Three rates to begin with, in factors of two.
      settings: Arguments beside the rate and the rest.
      warmup: Steps of the warm-up.
      rest: Whether other leaves have AdamW at the rate that was found for Muon's.
    """

    row: str
    steps: int
    rates: tuple[float, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    warmup: int = 0
    rest: bool = True


AVERAGES = {"b1": 0.7, "b2": 0.99}
MOMENTS = {"b1": 0.85, "b2": 0.95, "weight_decay": 0.0}
ADAPTIVE = (0.01, 0.02, 0.04)
LOW_RANK = {"rank": 32, "every": 40, "scale": 1.0}
SCION = {"b1": 0.85, "radius": {"spectral": 2.0, "sign": 20.0, "rms": 2.0}}
# Lengths: the whole budget of AdamW, and 40 % of it for the others.
FULL, SHORT = 300, 120
METHODS: dict[str, Method] = {
    "adamw": Method("adamw", FULL, (0.0055, 0.011, 0.022), AVERAGES, 40, rest=False),
    "adamw, short": Method(
        "adamw", SHORT, (0.0055, 0.011, 0.022), AVERAGES, 20, rest=False
    ),
    "muon": Method("muon", SHORT, (0.07, 0.14, 0.28), {"b1": 0.85}),
    "normuon": Method("normuon", SHORT, (0.07, 0.14, 0.28), {"b1": 0.85}),
    "turbo_muon": Method("turbo_muon", SHORT, (0.07, 0.14, 0.28), {"b1": 0.85}),
    "lanton": Method("lanton", SHORT, (0.07, 0.14, 0.28), {"b1": 0.85}),
    # One rate for all leaves: it has norms in place of a rest.
    "scion": Method("scion", SHORT, (0.02, 0.04, 0.08), SCION, rest=False),
    "soap": Method("soap", SHORT, ADAPTIVE, {**MOMENTS, "every": 10}, 10),
    # The authors advise a third of Adam's rate.
    "psgd_kron": Method("psgd_kron", SHORT, (0.005, 0.01, 0.02), {"b1": 0.85}, 10),
    "shampoo": Method("shampoo", SHORT, ADAPTIVE, {"every": 10}, 10),
    "galore": Method("galore", SHORT, ADAPTIVE, LOW_RANK),
    "natural_galore": Method("natural_galore", SHORT, ADAPTIVE, LOW_RANK),
    "fira": Method("fira", SHORT, ADAPTIVE, LOW_RANK),
    "apollo": Method("apollo", SHORT, ADAPTIVE, LOW_RANK),
    "frugal": Method("frugal", SHORT, ADAPTIVE, {"every": 40}),
    "scale": Method("scale", SHORT, ADAPTIVE),
}
BASELINE = "adamw"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a method."""

    method: str
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        """Names the run's folder."""
        return f"{self.method}-{self.rate:g}-seed-{self.seed}".replace(", ", "-")

    def run(self, out: pathlib.Path) -> dict[str, Any]:
        """Trains, or reads back what is there; a run that diverged has no losses."""
        try:
            return runs.finish(
                workloads.get(WORKLOAD),
                chain(self.method, self.rate),
                out,
                steps=METHODS[self.method].steps,
                seed=self.seed,
                eval_every=EVAL_EVERY,
                measure=False,
                progress=False,
                label=self.method,
            )
        except lab.Diverged:
            return {"final_loss": math.inf, "evaluations": []}


@functools.cache
def chain(name: str, rate: float) -> optax.GradientTransformation:
    """Makes the optimizer of a run; seeds share it, and so what is compiled."""
    method = METHODS[name]
    decaying = functools.partial(schedules.linear, total_steps=method.steps)
    rest = optimizers.adamw(decaying(0.045), **AVERAGES)
    return catalog.get(method.row).build(
        decaying(rate, warmup_steps=method.warmup),
        **method.settings,
        **({"rest": rest} if method.rest else {}),
    )


def measure(pool: parallel.Pool, name: str) -> dict[str, Any]:
    """Tunes a method and runs the other seeds."""

    def losses_at(rates: list[float]) -> dict[float, float]:
        found = pool.finish(Run(name, rate, SWEEP_SEED) for rate in rates)
        return {run.rate: result["final_loss"] for run, result in found.items()}

    sweep = grids.tune(losses_at, METHODS[name].rates)
    rate = min(sweep, key=sweep.__getitem__)
    results = pool.finish(Run(name, rate, seed) for seed in SEEDS)
    return {
        "method": name,
        "steps": METHODS[name].steps,
        "rate": rate,
        "sweep": {f"{rate:g}": loss for rate, loss in sorted(sweep.items())},
        "evaluations": [result["evaluations"] for result in results.values()],
        "state bytes a parameter": state_bytes(name),
    }


def state_bytes(name: str) -> float:
    """Counts the bytes of the optimizer's state for each parameter of the model."""
    params = jax.eval_shape(
        lambda: nnx.state(workloads.get(WORKLOAD).make_model(0), nnx.Param)
    )
    state = jax.eval_shape(chain(name, METHODS[name].rates[0]).init, params)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    return sum(sizes) / sum(leaf.size for leaf in jax.tree.leaves(params))


def run_all(pool: parallel.Pool, names: list[str]) -> None:
    """Trains what is missing and writes the numbers."""
    cells = {}
    if RECORD.exists():
        cells = {cell["method"]: cell for cell in json.loads(RECORD.read_text())}
    for name in names:
        cells[name] = measure(pool, name)
        ordered = [cells[method] for method in METHODS if method in cells]
        runs.write_json(RECORD, ordered)


def report() -> str:
    """Returns the table."""
    cells = {cell["method"]: cell for cell in json.loads(RECORD.read_text())}
    target = statistics.mean(_finals(cells[BASELINE]))
    lines = [
        f"| method | rate | steps | final loss | steps to {target:.3f} | of {FULL} |"
        " state, bytes a parameter |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, cell in cells.items():
        finals = _finals(cell)
        steps = race.first_at(_mean(cell), target)
        lines.append(
            f"| {name} | {cell['rate']:g} | {cell['steps']} |"
            f" {statistics.mean(finals):.3f} ± {statistics.stdev(finals):.3f} |"
            + (f" {steps} | {steps / FULL:.0%} |" if steps else " never | |")
            + f" {cell['state bytes a parameter']:.1f} |"
        )
    return "\n".join(lines)


def _finals(cell: dict[str, Any]) -> list[float]:
    return [curve[-1][1] if curve else math.inf for curve in cell["evaluations"]]


def _mean(cell: dict[str, Any]) -> list[tuple[int, float]]:
    """Returns the mean curve of the seeds."""
    return [
        (int(rows[0][0]), statistics.mean(row[1] for row in rows))
        for rows in zip(*cell["evaluations"], strict=True)
    ]


def main() -> None:
    """Runs what is missing, or prints what there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="some only")
    parser.add_argument("--report", action="store_true", help="print the table only")
    flags = parser.parse_args()
    if not flags.report:
        if flags.out is None:
            parser.error("--out is needed: the folder of the runs")
        run_all(parallel.Pool(flags.out, flags.jobs), flags.methods)
    print(report())


if __name__ == "__main__":
    main()
