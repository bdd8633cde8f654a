"""Schedules against each other under small budgets and on data that change.

    python benchmarks/schedules.py --out runs/schedules --jobs 2
    python benchmarks/schedules.py --report

Every pair of task, schedule and length has its own peak rate: the best of one grid,
the same for all schedules of the task, with seed 0. Three other seeds are then run at
that peak. The first command trains what is not in the folder yet and writes the
numbers to `benchmarks/schedules.json`; the second prints the tables from there.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

import continual
import optax
import parallel

from optlab import optimizers, schedules
from optlab.lab import runs, workloads

RECORD = pathlib.Path(__file__).with_suffix(".json")
SWEEP_SEED, SEEDS = 0, (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Task:
    """A workload, AdamW's averages, the grid of peaks, and the budgets.

    Attributes:
      full: Steps of the whole budget.
      averages: Decay rates of AdamW's averages.
      peaks: The grid of peak rates.
      percents: Parts of the budget that are run, the refined schedule at the last.
    """

    full: int
    averages: dict[str, float]
    peaks: tuple[float, ...]
    percents: tuple[int, ...]


TUNED = {"b1": 0.7, "b2": 0.99}
MIDDLE = (0.0055, 0.011, 0.022)
TASKS = {
    "shakespeare": Task(500, TUNED, MIDDLE, (5, 10, 25)),
    # Steps of a millisecond: the whole budget too.
    "digits": Task(1000, {}, (0.012, 0.024, 0.048, 0.096, 0.192), (5, 10, 25, 100)),
    "plays-then-python": Task(250, TUNED, (0.0014, 0.0028, *MIDDLE), (100,)),
}
PLAIN = ("linear", "rex", "uba", "cosine")
# What each is compared with.
AGAINST = {
    "rex": ("linear",),
    "uba": ("cosine",),
    "linear": ("cosine",),
    "refined": ("linear",),
    "infinite": ("repeated-cosine",),
}


def build(name: str, peak: float, steps: int) -> optax.Schedule:
    """Makes a schedule; an eighth of the steps, or of a cycle, is warm-up."""
    whole = {"total_steps": steps, "warmup_steps": steps // 8}
    half = steps // 2
    makers = {
        "linear": lambda: schedules.linear(peak, **whole),
        "rex": lambda: schedules.rex(peak, **whole),
        "uba": lambda: schedules.uba(peak, **whole),
        "cosine": lambda: schedules.cosine(peak, **whole),
        # Restarted where the data change.
        "repeated-cosine": lambda: schedules.cycles(
            peak, cycle_steps=[half, half], warmup_steps=half // 8
        ),
        # Constant across the change, annealed in the last fifth.
        "infinite": lambda: schedules.infinite(
            peak,
            stable_value=peak / 2,
            end_value=peak / 100,
            warmup_steps=half // 8,
            cooldown_steps=half // 2,
            annealing_steps=steps // 5,
            annealing_start=steps - steps // 5,
        ),
    }
    return makers[name]()


@dataclasses.dataclass(frozen=True)
class Run:
    """One run; a refined one names the folder of the run whose norms it is made of."""

    task: str
    schedule: str
    steps: int
    peak: float
    seed: int
    norms: str = ""

    @property
    def folder(self) -> str:
        """Names the run's folder."""
        return (
            f"{self.task}-{self.schedule}-{self.steps}-{self.peak:g}-seed-{self.seed}"
        )

    def run(self, out: pathlib.Path) -> dict[str, Any]:
        """Trains, or reads back what is there."""
        norms = out.parent / self.norms if self.norms else None
        if self.task == "plays-then-python":
            eval_every = self.steps // 2
            workload = continual.plays_then_python(eval_every)
        else:
            eval_every = self.steps
            workload = workloads.get(self.task)
        return runs.finish(
            workload,
            chain(self.task, self.schedule, self.steps, self.peak, norms),
            out,
            steps=self.steps,
            seed=self.seed,
            eval_every=eval_every,
            measure=False,
            progress=False,
            label=f"adamw+{self.schedule}",
        )


@functools.cache
def chain(
    task: str, schedule: str, steps: int, peak: float, norms: pathlib.Path | None
) -> optax.GradientTransformation:
    """Makes AdamW with a schedule; seeds share it, and so what is compiled."""
    if norms:
        rows = parallel.log(norms, "train")
        rate = schedules.refined(
            [row["gradient_l1_norm"] for row in rows],
            peak=peak,
            method="adam",
            total_steps=steps,
        )
    else:
        rate = build(schedule, peak, steps)
    return optimizers.adamw(rate, **TASKS[task].averages)


def lengths(task: str) -> list[int]:
    """Returns the lengths of the runs of a task."""
    return [TASKS[task].full * percent // 100 for percent in TASKS[task].percents]


def pairs() -> list[tuple[str, str, int]]:
    """Lists task, schedule and length of every cell of the tables but the refined."""
    found = [
        (task, schedule, steps)
        for task in ("shakespeare", "digits")
        for steps in lengths(task)
        for schedule in PLAIN
    ]
    whole = TASKS["plays-then-python"].full
    return found + [
        ("plays-then-python", schedule, whole)
        for schedule in ("repeated-cosine", "infinite")
    ]


def measure(
    pool: parallel.Pool, wanted: Iterable[tuple[str, str, int]], norms: dict[Any, str]
) -> dict[Any, dict[str, Any]]:
    """Sweeps the peak of each pair, then runs the other seeds at the best one."""
    sweeps = {
        pair: [
            Run(*pair, peak, SWEEP_SEED, norms.get(pair, ""))
            for peak in TASKS[pair[0]].peaks
        ]
        for pair in wanted
    }
    found = pool.finish(run for sweep in sweeps.values() for run in sweep)
    losses = {
        pair: {run.peak: found[run]["final_loss"] for run in sweep}
        for pair, sweep in sweeps.items()
    }
    best = {pair: min(losses[pair], key=losses[pair].__getitem__) for pair in sweeps}
    finals = {
        pair: [Run(*pair, best[pair], seed, norms.get(pair, "")) for seed in SEEDS]
        for pair in sweeps
    }
    results = pool.finish(run for runs in finals.values() for run in runs)
    return {
        pair: {
            "task": pair[0],
            "schedule": pair[1],
            "steps": pair[2],
            "sweep": losses[pair],
            "peak": best[pair],
            "losses": [results[run]["final_loss"] for run in finals[pair]],
            **_texts(pool, finals[pair]),
        }
        for pair in sweeps
    }


def _texts(pool: parallel.Pool, finals: list[Run]) -> dict[str, Any]:
    """Reads the loss of each text, where the data change and at the end."""
    if finals[0].task != "plays-then-python":
        return {}
    logs = [parallel.log(pool.out / run.folder, "eval") for run in finals]
    return {
        "plays at the change": [log[0]["plays"] for log in logs],
        "plays": [log[-1]["plays"] for log in logs],
        "python": [log[-1]["python"] for log in logs],
    }


def run_all(pool: parallel.Pool) -> None:
    """Trains what is missing and writes the numbers."""
    cells = measure(pool, pairs(), {})
    # A refined schedule is made of the norms of the best linear run of its sweep.
    norms = {}
    for task in ("shakespeare", "digits"):
        for steps in lengths(task)[-1:]:
            linear = cells[task, "linear", steps]
            source = Run(task, "linear", steps, linear["peak"], SWEEP_SEED)
            norms[task, "refined", steps] = source.folder
    cells |= measure(pool, norms, norms)
    runs.write_json(RECORD, {"seeds": list(SEEDS), "cells": list(cells.values())})


def report() -> str:
    """Returns the tables."""
    cells = json.loads(RECORD.read_text())["cells"]
    table = {(c["task"], c["steps"], c["schedule"]): c for c in cells}
    lines = []
    for task in ("shakespeare", "digits"):
        names = (*PLAIN, "refined")
        lines += [
            f"| {task}, steps | " + " | ".join(names) + " |",
            "| ---: |" + " --- |" * len(names),
        ]
        for steps in lengths(task):
            share = 100 * steps // TASKS[task].full
            found = [table.get((task, steps, name)) for name in names]
            marked = " | ".join(_cell(cell) if cell else "" for cell in found)
            lines.append(f"| {steps} ({share} %) | {marked} |")
        lines.append("")
    keys = ("plays at the change", "plays", "python")
    lines += [
        "| plays, then Python | peak | plays at the change | plays, end | Python, end |"
        " mean of both, end |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for cell in cells:
        if cell["task"] == "plays-then-python":
            parts = " | ".join(_spread(cell[key]) for key in keys)
            lines.append(
                f"| {cell['schedule']} | {cell['peak']:g} | {parts} |"
                f" {_spread(cell['losses'])} |"
            )
    lines += [
        "",
        "| difference of the losses, seed by seed | steps | mean ± deviation |",
        "| --- | ---: | --- |",
    ]
    for (task, steps, name), cell in table.items():
        for other in AGAINST.get(name, ()):
            pairs = zip(
                cell["losses"], table[task, steps, other]["losses"], strict=True
            )
            spread = _spread([ours - theirs for ours, theirs in pairs])
            lines.append(f"| {task}: {name} - {other} | {steps} | {spread} |")
    return "\n".join(lines)


def _cell(cell: dict[str, Any]) -> str:
    return f"{_spread(cell['losses'])} ({cell['peak']:g})"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    """Runs what is missing, or prints what there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="print the tables only")
    flags = parser.parse_args()
    if not flags.report:
        if flags.out is None:
            parser.error("--out is needed: the folder of the runs")
        run_all(parallel.Pool(flags.out, flags.jobs))
    print(report())


if __name__ == "__main__":
    main()
