"""Races: several chains on the same data and seeds, each with a schedule of its own.

A finished run is read back, an interrupted one goes on from its newest checkpoint; so
the same command, given again, continues the race and ends with the same losses.
"""

import dataclasses
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optlab.lab import (
    default_race,
    files,
    placement,
    plots,
    processes,
    report,
    runs,
    terminal,
    workloads,
)
from optlab.lab.chains import Chain, parse


@dataclasses.dataclass(frozen=True)
class Race:
    """What decides the numbers of a race.

    Attributes:
      workload: Name of the workload.
      chains: The chains, explicit; the first one is the baseline.
      seeds: Number of seeds; they are 0, 1, ..., seeds - 1.
      size: Size of the workload, such as "default" or "tiny".
      eval_every: Steps between evaluations on the validation data.

    Raises:
      ValueError: If the workload is unknown, two chains are the same, or a number is
        below 1.
    """

    workload: str
    chains: tuple[Chain, ...]
    seeds: int = default_race.SEEDS
    size: str = "default"
    eval_every: int = default_race.EVAL_EVERY

    def __post_init__(self):
        runs.check_workload(self.workload)
        if len(set(map(str, self.chains))) < len(self.chains):
            raise ValueError("two chains of the race are the same")
        for key in ("seeds", "eval_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each chain that no other chain of the race has."""
        names = [chain.name for chain in self.chains]
        return tuple(
            name if names.count(name) == 1 else str(chain)
            for name, chain in zip(names, self.chains, strict=True)
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the numbers of a run, beside its chain and its seed."""
        workload = workloads.get(self.workload, size=self.size)
        return {
            "workload": runs.fingerprint(workload),
            "eval_every": self.eval_every,
        }


def plan(
    workload: str = default_race.WORKLOAD,
    texts: Sequence[str] = (),
    steps: int | None = None,
    **settings: Any,
) -> Race:
    """Plans a race from the texts of its chains.

    Without texts it is the default race, AdamW against Muon with 40 % of its steps.

    >>> [str(chain) for chain in plan(texts=["sgd:learning_rate=0.1+linear@9"]).chains]
    ['sgd:learning_rate=0.1,momentum=0.9+linear:warmup_steps=0@9']

    Args:
      workload: Name of the workload.
      texts: Chains; those without '@STEPS' run for `steps` steps.
      steps: Steps of the baseline; None for the default.
      **settings: Other fields of `Race`.

    Returns:
      The race, with everything that the texts left out written down.

    Raises:
      ValueError: If a chain, the workload or a number is not in order.
    """
    steps = default_race.STEPS if steps is None else steps
    if not texts:
        shorter = max(1, round(default_race.CHALLENGER_FRACTION * steps))
        texts = (default_race.BASELINE, f"{default_race.CHALLENGER}@{shorter}")
    parsed = tuple(parse(text).explicit(steps, workload) for text in texts)
    race = Race(workload, parsed, **settings)
    for chain in parsed:
        chain.build()
    return race


def run(
    race: Race,
    out: str | os.PathLike,
    *,
    command: str = "",
    where: placement.Placement | None = None,
) -> dict[str, Any]:
    """Runs what is not finished yet and writes race.json, race.png and report.md.

    Args:
      race: The race.
      out: Folder for the results, with a folder in it for each run.
      command: The command line, for the record.
      where: Mesh of the runs; None for one device.

    Returns:
      The results, as race.json holds them.

    Raises:
      LabError: If the folder cannot be written in, or a run fails; what is saved is
        kept.
    """
    out = pathlib.Path(out)
    runs.make_folder(out)
    workload = workloads.get(race.workload, size=race.size)
    where = where or placement.Placement()
    transformations = [chain.build(mesh=where.mesh)[0] for chain in race.chains]
    records: list[list[dict[str, Any]]] = [[] for _ in race.chains]
    total = race.seeds * len(race.chains)
    # Seed by seed, so that an interrupted race has compared all chains on some seeds.
    for seed in range(race.seeds):
        for index, chain in enumerate(race.chains):
            number = seed * len(race.chains) + index + 1
            what = f"{race.labels[index]}, seed {seed}, {chain.steps} steps"
            terminal.report(f"run {number} of {total}: {what}")
            record = runs.finish(
                workload,
                transformations[index],
                out / runs.folder(chain, seed, race.facts),
                steps=chain.length,
                seed=seed,
                eval_every=race.eval_every,
                label=f"{chain.name} seed {seed}",
                mesh=where.mesh,
                param_spec=where.param_spec,
                eval_params=chain.eval_params,
            )
            records[index].append(record)
    results = {
        "command": command,
        **summarise(race, records),
        "versions": runs.versions(),
        "machine": runs.machine(),
    }
    processes.decide(_write, results, out)
    return results


def _write(results: dict[str, Any], out: pathlib.Path) -> None:
    runs.write_json(out / "race.json", results)
    plots.race(results, out / "race.png")
    files.write_text(out / "report.md", report.race(results))


def summarise(race: Race, records: Sequence[Sequence[Mapping]]) -> dict[str, Any]:
    """Summarises the runs of a race.

    Args:
      race: The race.
      records: For each chain its runs, one for each seed, as `runs.finish` returns
        them.

    Returns:
      The results but for the command, the versions and the machine. `target` is the
      mean final loss of the baseline.
    """
    target = statistics.fmean(record["final_loss"] for record in records[0])
    return {
        "workload": race.workload,
        "size": race.size,
        "seeds": list(range(race.seeds)),
        "eval_every": race.eval_every,
        "baseline": race.labels[0],
        "target": target,
        "chains": [
            {"label": label, **_summarise_chain(race, chain, own, target)}
            for label, chain, own in zip(race.labels, race.chains, records, strict=True)
        ],
    }


def _summarise_chain(
    race: Race, chain: Chain, records: Sequence[Mapping], target: float
) -> dict[str, Any]:
    steps = chain.length
    curve = average([record["evaluations"] for record in records])
    reached = first_at(curve, target)
    _, schedule = chain.build()
    return {
        "chain": str(chain),
        "steps": steps,
        "final_loss": spread([record["final_loss"] for record in records]),
        "steps_to_baseline": reached,
        "steps_to_baseline_by_seed": [
            first_at(record["evaluations"], target) for record in records
        ],
        "step_ratio": None if reached is None else reached / race.chains[0].length,
        **_costs(records),
        "curve": curve,
        "peak": chain.optimizer.settings["learning_rate"],
        "schedule": [
            [step, np.asarray(schedule(step)).item()]
            for step in range(0, steps + 1, max(1, steps // 100))
        ],
        "runs": [
            {
                "seed": seed,
                "folder": str(runs.folder(chain, seed, race.facts)),
                "final_loss": record["final_loss"],
                "evaluations": record["evaluations"],
                "seconds_per_step": record["seconds_per_step"],
            }
            for seed, record in enumerate(records)
        ],
    }


def spread(losses: Sequence[float]) -> dict[str, float | None]:
    """Summarises the losses of several seeds.

    >>> spread([1.0, 2.0, 3.0])
    {'mean': 2.0, 'spread': 1.0}

    Args:
      losses: A loss for each seed.

    Returns:
      Their mean and their sample standard deviation, None for one seed.
    """
    deviation = statistics.stdev(losses) if len(losses) > 1 else None
    return {"mean": statistics.fmean(losses), "spread": deviation}


def average(curves: Iterable[Iterable[tuple[int, float]]]) -> list[list[float]]:
    """Averages loss curves over seeds.

    >>> average([[(10, 2.0), (20, 1.0)], [(10, 4.0), (20, 1.0)]])
    [[10, 3.0, 2.0, 4.0], [20, 1.0, 1.0, 1.0]]

    Args:
      curves: For each seed pairs of a step and a loss, at the same steps.

    Returns:
      Rows of step, mean, lowest and highest loss.
    """
    rows = []
    for points in zip(*curves, strict=True):
        losses = [loss for _, loss in points]
        rows.append([points[0][0], statistics.fmean(losses), min(losses), max(losses)])
    return rows


def first_at(curve: Iterable[Sequence[float]], target: float) -> int | None:
    """Finds where a curve is for the first time at or below a loss.

    >>> first_at([(10, 3.0), (20, 1.5), (30, 1.0)], 1.5)
    20

    Args:
      curve: Rows that begin with a step and a loss.
      target: The loss.

    Returns:
      The step; None if the curve stays above.
    """
    return next((int(row[0]) for row in curve if row[1] <= target), None)


def _costs(records: Sequence[Mapping]) -> dict[str, float | None]:
    """What a chain's steps cost: means over its runs, and the longest compilation."""
    known = {
        key: [record[key] for record in records if record[key] is not None]
        for key in (
            "seconds_per_step",
            "optimizer_share",
            "state_bytes_per_parameter",
            "compile_seconds",
        )
    }
    means = {key: statistics.fmean(v) if v else None for key, v in known.items()}
    seconds = means["seconds_per_step"]
    return {
        "milliseconds_per_step": None if seconds is None else 1000 * seconds,
        "optimizer_share": means["optimizer_share"],
        "state_bytes_per_parameter": means["state_bytes_per_parameter"],
        # Later seeds may find the step compiled already.
        "compile_seconds": max(known["compile_seconds"], default=None),
    }
