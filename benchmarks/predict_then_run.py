"""Fits a law on two short runs, predicts eleven other schedules, then runs them.

    python benchmarks/predict_then_run.py --out runs/predict --seeds 2 --jobs 2
    python benchmarks/predict_then_run.py --report
    python benchmarks/predict_then_run.py --bound

The first command trains what is not in the folder yet, writes the curves that it found
to `benchmarks/curves`, and ends with the report; the second reads those curves alone.
The third fits the law to the very curves that it is to predict: what its form allows.
Each seed is the whole experiment over again, its fit and its design included. Others
than the default have a folder of curves of their own:

    python benchmarks/predict_then_run.py --out runs/long --fit-steps 1000 --seeds 1
        --multiples 1 --curves benchmarks/curves/long
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import pathlib
import statistics
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import parallel
import scipy.stats

from optlab import laws, optimizers, schedules
from optlab.lab import curves, runs, workloads
from optlab.schedules import shapes

CURVES = pathlib.Path(__file__).parent / "curves"

# AdamW as the default race has it, rate and averages tuned with linear decay.
WORKLOAD = "shakespeare"
PEAK, B1, B2 = 0.011, 0.7, 0.99
WARMUP = 40

FIT = ("constant", "cosine")
OTHERS = (
    *("linear", "rex", "uba-0.5", "uba-4", "cosine-power"),
    *("wsd-sqrt", "wsd-linear", "wsd-cosine", "infinite"),
    # As the method has it, with no warm-up; and behind the warm-up of all the others.
    *("refined", "warm-refined"),
)
DESIGNED = "designed"
# Of these a law can know: the others are at the peak for a moment at most.
AT_THE_PEAK = OTHERS[:9]
# Steps between two rows of a curve's file: the rate is a straight line between them.
ROW_EVERY = 5


def build(name: str, steps: int, peak: float) -> optax.Schedule:
    """Makes one of the schedules; all have the same warm-up and the same peak."""
    whole = {"total_steps": steps, "warmup_steps": WARMUP}
    wsd = {**whole, "decay_steps": steps // 5}
    makers = {
        "constant": lambda: schedules.constant(peak, warmup_steps=WARMUP),
        "cosine": lambda: schedules.cosine(peak, **whole),
        "linear": lambda: schedules.linear(peak, **whole),
        "rex": lambda: schedules.rex(peak, **whole),
        "uba-0.5": lambda: schedules.uba(peak, phi=0.5, **whole),
        "uba-4": lambda: schedules.uba(peak, phi=4.0, **whole),
        "cosine-power": lambda: schedules.cosine_power(peak, **whole),
        "wsd-sqrt": lambda: schedules.wsd(peak, **wsd),
        "wsd-linear": lambda: schedules.wsd(peak, **wsd, decay=shapes.linear),
        "wsd-cosine": lambda: schedules.wsd(peak, **wsd, decay=shapes.cosine),
        "infinite": lambda: schedules.infinite(
            peak,
            stable_value=0.4 * peak,
            end_value=0.01 * peak,
            warmup_steps=WARMUP,
            cooldown_steps=2 * steps // 5,
            annealing_steps=steps // 5,
            annealing_start=steps - steps // 5,
        ),
    }
    return makers[name]()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Two runs to fit a law on, and the runs that try it.

    Attributes:
      fit_steps: Length of the runs of the fit.
      multiples: Lengths of the others, as multiples of it.
      peak: Largest rate of all.
      seed: Seed of models and data.
      curves: Folder of the curves.
    """

    fit_steps: int
    multiples: tuple[int, ...]
    peak: float
    seed: int
    curves: pathlib.Path

    @property
    def lengths(self) -> list[int]:
        """Lists the numbers of steps to predict."""
        return [multiple * self.fit_steps for multiple in self.multiples]

    def fit(self) -> laws.Fitted:
        """Fits the default law on the two runs."""
        short = [Run(name, self.fit_steps, self) for name in FIT]
        return laws.fit([read_curve(run) for run in short])


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
      name: Name of the schedule.
      steps: Its length.
      experiment: The experiment that it is part of.
      law: The fitted law as JSON, for a designed schedule.
    """

    name: str
    steps: int
    experiment: Experiment
    law: str = ""

    @property
    def curve(self) -> str:
        """Names the curve's file."""
        return f"{self.name}-{self.steps}-seed-{self.experiment.seed}"

    @property
    def folder(self) -> str:
        """Names the run's folder."""
        law = hashlib.sha256(self.law.encode()).hexdigest()[:8] if self.law else ""
        return f"{self.curve}-peak-{self.experiment.peak:g}-{law}".rstrip("-")

    @property
    def eval_every(self) -> int:
        """Fits want many losses; of the others the last one counts most."""
        return 10 if self.name in FIT else 25

    def schedule(self, runs_folder: pathlib.Path) -> optax.Schedule:
        """Makes the schedule; two kinds are made of the short runs."""
        total, peak = {"total_steps": self.steps}, self.experiment.peak
        if self.name == DESIGNED:
            fitted = laws.from_json(json.loads(self.law))
            return laws.design(fitted, peak=peak, warmup_steps=WARMUP, **total)
        if self.name.endswith("refined"):
            source = Run("cosine", self.experiment.fit_steps, self.experiment)
            rows = parallel.log(runs_folder / source.folder, "train")
            norms = [row["gradient_l1_norm"] for row in rows]
            if self.name == "refined":
                return schedules.refined(norms, peak=peak, method="adam", **total)
            rest = schedules.refined(
                norms[WARMUP:],
                peak=peak,
                method="adam",
                total_steps=self.steps - WARMUP,
            )
            return optax.join_schedules([build("constant", 0, peak), rest], [WARMUP])
        return build(self.name, self.steps, peak)

    def run(self, out: pathlib.Path) -> dict[str, Any]:
        """Trains, or reads back what is there, and writes the curve's file."""
        schedule = self.schedule(out.parent)
        result = runs.finish(
            workloads.get(WORKLOAD),
            optimizers.adamw(schedule, b1=B1, b2=B2),
            out,
            steps=self.steps,
            seed=self.experiment.seed,
            eval_every=self.eval_every,
            measure=False,
            progress=False,
            label=f"adamw+{self.name}",
        )
        write_curve(self.experiment.curves / f"{self.curve}.csv", schedule, result)
        return result


def write_curve(path: pathlib.Path, schedule: Any, result: dict[str, Any]) -> None:
    """Writes step, rate of the next update, and validation loss where measured."""
    losses = dict(map(tuple, result["evaluations"]))
    steps = np.arange(0, result["steps"] + 1, ROW_EVERY)
    rates = np.asarray(schedule(jnp.asarray(steps)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "lr", "loss"))
        for step, rate in zip(steps.tolist(), rates.tolist(), strict=True):
            loss = f"{losses[step]:.6f}" if step in losses else ""
            writer.writerow((step, f"{rate:.7g}", loss))


def read_curve(run: Run) -> laws.Curve:
    """Reads the curve of a run that is finished."""
    return curves.read(run.experiment.curves / f"{run.curve}.csv")


def run_all(pool: parallel.Pool, experiments: list[Experiment]) -> None:
    """Trains what is missing."""
    for experiment in experiments:
        # The others are refined from the short runs, or designed by their law.
        pool.finish(Run(name, experiment.fit_steps, experiment) for name in FIT)
        law = json.dumps(laws.to_json(experiment.fit()))
        pool.finish(
            Run(name, steps, experiment, law if name == DESIGNED else "")
            for name in (*OTHERS, DESIGNED)
            for steps in reversed(experiment.lengths)
        )


def predict(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns predicted and measured final loss of every run but those of the fit."""
    fitted, rows = experiment.fit(), []
    for steps in experiment.lengths:
        for name in (*OTHERS, DESIGNED):
            curve = read_curve(Run(name, steps, experiment))
            foreseen = laws.compare(fitted, curve)
            rows.append(
                {
                    "schedule": name,
                    "steps": steps,
                    "seed": experiment.seed,
                    "predicted": float(foreseen.loss[-1]),
                    "low": float(foreseen.low[-1]),
                    "high": float(foreseen.high[-1]),
                    "measured": float(curve.loss[-1]),
                }
            )
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compares predictions and measurements of one seed and one length."""
    others = [row for row in rows if row["schedule"] != DESIGNED]
    (designed,) = [row for row in rows if row["schedule"] == DESIGNED]
    best = min(others, key=lambda row: row["measured"])
    wrong = [abs(row["predicted"] / row["measured"] - 1) for row in others]
    rank = scipy.stats.spearmanr(
        [row["predicted"] for row in others], [row["measured"] for row in others]
    )
    return {
        "steps": rows[0]["steps"],
        "seed": rows[0]["seed"],
        "mean error": statistics.mean(wrong),
        "worst error": max(wrong),
        "rank": float(rank.statistic),
        "designed": designed["measured"],
        "best": best["measured"],
        "best schedule": best["schedule"],
    }


def report(experiments: list[Experiment]) -> str:
    """Returns the tables of some experiments that differ in nothing but the seed."""
    rows = [row for experiment in experiments for row in predict(experiment)]
    seeds = [experiment.seed for experiment in experiments]
    lengths = experiments[0].lengths
    lines = [
        "| schedule | steps |"
        + "".join(f" predicted, {s} | measured, {s} | error, {s} |" for s in seeds),
        "| --- | ---: |" + " ---: | ---: | ---: |" * len(seeds),
    ]
    for steps in lengths:
        for name in (*OTHERS, DESIGNED):
            cells = [r for r in rows if (r["schedule"], r["steps"]) == (name, steps)]
            text = "".join(
                f" {r['predicted']:.4f} | {r['measured']:.4f} |"
                f" {100 * (r['predicted'] / r['measured'] - 1):+.2f} % |"
                for r in cells
            )
            lines.append(f"| {name} | {steps} |{text}")
    lines += [
        "",
        "| steps | seed | mean error | worst error | Spearman | designed |"
        " best by hand |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for steps in lengths:
        for seed in seeds:
            same = [r for r in rows if (r["steps"], r["seed"]) == (steps, seed)]
            s = summarise(same)
            lines.append(
                f"| {steps} | {seed} | {s['mean error']:.2%} | {s['worst error']:.2%} |"
                f" {s['rank']:.3f} | {s['designed']:.4f} | {s['best']:.4f}"
                f" ({s['best schedule']}) |"
            )
    return "\n".join(lines)


def bound(experiments: list[Experiment]) -> str:
    """Returns what the law misses when it is fitted to what it should predict."""
    lines = [
        "| fitted to steps | steps | seed | mean error | worst error | Spearman |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for experiment in experiments:
        for lengths in dict.fromkeys(
            (tuple(experiment.lengths[:1]), tuple(experiment.lengths))
        ):
            short = [Run(name, experiment.fit_steps, experiment) for name in FIT]
            tried = [Run(n, s, experiment) for s in lengths for n in AT_THE_PEAK]
            known = {run: read_curve(run) for run in (*short, *tried)}
            fitted = laws.fit(list(known.values()))
            for steps in lengths:
                ends = [known[run] for run in tried if run.steps == steps]
                foreseen = [float(laws.compare(fitted, c).loss[-1]) for c in ends]
                measured = [float(c.loss[-1]) for c in ends]
                wrong = [
                    abs(p / m - 1) for p, m in zip(foreseen, measured, strict=True)
                ]
                rank = scipy.stats.spearmanr(foreseen, measured).statistic
                text = " and ".join(map(str, lengths))
                lines.append(
                    f"| {text} | {steps} | {experiment.seed} |"
                    f" {statistics.mean(wrong):.2%} | {max(wrong):.2%} | {rank:.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, then reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--fit-steps", type=int, default=250, help="of the two runs")
    parser.add_argument(
        "--multiples", type=int, nargs="+", default=[1, 2], help="lengths of the others"
    )
    parser.add_argument("--peak", type=float, default=PEAK, help="largest rate")
    parser.add_argument("--curves", type=pathlib.Path, default=CURVES, help="folder")
    parser.add_argument("--seeds", type=int, default=2, help="whole experiments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--bound", action="store_true", help="fit to all curves")
    flags = parser.parse_args()
    multiples = tuple(flags.multiples)
    experiments = [
        Experiment(flags.fit_steps, multiples, flags.peak, seed, flags.curves)
        for seed in range(flags.seeds)
    ]
    if flags.bound:
        print(bound(experiments))
        return
    if not flags.report:
        if flags.out is None:
            parser.error("--out is needed: the folder of the runs")
        run_all(parallel.Pool(flags.out, flags.jobs), experiments)
    print(report(experiments))


if __name__ == "__main__":
    main()
