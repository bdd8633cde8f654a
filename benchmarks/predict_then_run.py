"""Fits a law on two short runs, predicts eleven other schedules, then runs them.

    python benchmarks/predict_then_run.py --out runs/predict --seeds 2 --jobs 2
    python benchmarks/predict_then_run.py --report --fit-steps 250

The first command trains what is not in the folder yet, writes the curves that it found
to `benchmarks/curves`, and ends with the report; the second reads those curves alone.
Each seed is the whole experiment over again, its fit and its design included.
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

HERE = pathlib.Path(__file__).parent
CURVES = HERE / "curves"

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
# Steps between two rows of a curve's file: the rate is a straight line between them.
ROW_EVERY = 5


def build(name: str, steps: int) -> optax.Schedule:
    """Makes one of the schedules; all have the same warm-up and the same peak."""
    whole = {"total_steps": steps, "warmup_steps": WARMUP}
    wsd = {**whole, "decay_steps": steps // 5}
    makers = {
        "constant": lambda: schedules.constant(PEAK, warmup_steps=WARMUP),
        "cosine": lambda: schedules.cosine(PEAK, **whole),
        "linear": lambda: schedules.linear(PEAK, **whole),
        "rex": lambda: schedules.rex(PEAK, **whole),
        "uba-0.5": lambda: schedules.uba(PEAK, phi=0.5, **whole),
        "uba-4": lambda: schedules.uba(PEAK, phi=4.0, **whole),
        "cosine-power": lambda: schedules.cosine_power(PEAK, **whole),
        "wsd-sqrt": lambda: schedules.wsd(PEAK, **wsd),
        "wsd-linear": lambda: schedules.wsd(PEAK, **wsd, decay=shapes.linear),
        "wsd-cosine": lambda: schedules.wsd(PEAK, **wsd, decay=shapes.cosine),
        "infinite": lambda: schedules.infinite(
            PEAK,
            stable_value=0.4 * PEAK,
            end_value=0.01 * PEAK,
            warmup_steps=WARMUP,
            cooldown_steps=2 * steps // 5,
            annealing_steps=steps // 5,
            annealing_start=steps - steps // 5,
        ),
    }
    return makers[name]()


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the experiment.

    Attributes:
      name: Name of the schedule.
      steps: Its length.
      seed: Seed of the model and of the data.
      fit_steps: Length of the short runs of its experiment.
      law: The fitted law as JSON, for a designed schedule.
    """

    name: str
    steps: int
    seed: int
    fit_steps: int
    law: str = ""

    @property
    def curve(self) -> str:
        """Names the curve's file."""
        return f"{self.name}-{self.steps}-seed-{self.seed}"

    @property
    def folder(self) -> str:
        """Names the run's folder."""
        law = hashlib.sha256(self.law.encode()).hexdigest()[:8] if self.law else ""
        return f"{self.curve}-{law}".rstrip("-")

    @property
    def eval_every(self) -> int:
        """Fits want many losses; of the others the last one counts most."""
        return 10 if self.name in FIT else 25

    def schedule(self, runs_folder: pathlib.Path) -> optax.Schedule:
        """Makes the schedule; two kinds are made of the short runs."""
        total = {"total_steps": self.steps}
        if self.name == DESIGNED:
            fitted = laws.from_json(json.loads(self.law))
            return laws.design(fitted, peak=PEAK, warmup_steps=WARMUP, **total)
        if self.name.endswith("refined"):
            source = Run("cosine", self.fit_steps, self.seed, self.fit_steps)
            rows = parallel.log(runs_folder / source.folder, "train")
            norms = [row["gradient_l1_norm"] for row in rows]
            if self.name == "refined":
                return schedules.refined(norms, peak=PEAK, method="adam", **total)
            rest = schedules.refined(
                norms[WARMUP:],
                peak=PEAK,
                method="adam",
                total_steps=self.steps - WARMUP,
            )
            return optax.join_schedules([build("constant", 0), rest], [WARMUP])
        return build(self.name, self.steps)

    def run(self, out: pathlib.Path) -> dict[str, Any]:
        """Trains, or reads back what is there, and writes the curve's file."""
        schedule = self.schedule(out.parent)
        result = runs.finish(
            workloads.get(WORKLOAD),
            optimizers.adamw(schedule, b1=B1, b2=B2),
            out,
            steps=self.steps,
            seed=self.seed,
            eval_every=self.eval_every,
            measure=False,
            progress=False,
            label=f"adamw+{self.name}",
        )
        write_curve(CURVES / f"{self.curve}.csv", schedule, result)
        return result


def write_curve(path: pathlib.Path, schedule: Any, result: dict[str, Any]) -> None:
    """Writes step, rate of the next update, and validation loss where measured."""
    losses = dict(map(tuple, result["evaluations"]))
    steps = np.arange(0, result["steps"] + 1, ROW_EVERY)
    rates = np.asarray(schedule(jnp.asarray(steps)))
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "lr", "loss"))
        for step, rate in zip(steps.tolist(), rates.tolist(), strict=True):
            loss = f"{losses[step]:.6f}" if step in losses else ""
            writer.writerow((step, f"{rate:.7g}", loss))


def fit(seed: int, fit_steps: int) -> laws.Fitted:
    """Fits the default law on the two short runs of a seed."""
    short = [Run(name, fit_steps, seed, fit_steps) for name in FIT]
    return laws.fit([read_curve(run) for run in short])


def read_curve(run: Run) -> laws.Curve:
    """Reads the curve of a run that is finished."""
    return curves.read(CURVES / f"{run.curve}.csv")


def run_all(pool: parallel.Pool, seeds: int, fit_steps: int) -> None:
    """Trains what is missing."""
    for seed in range(seeds):
        # The others are refined from the short runs, or designed by their law.
        pool.finish(Run(name, fit_steps, seed, fit_steps) for name in FIT)
        law = json.dumps(laws.to_json(fit(seed, fit_steps)))
        pool.finish(
            Run(name, steps, seed, fit_steps, law if name == DESIGNED else "")
            for name in (*OTHERS, DESIGNED)
            for steps in (2 * fit_steps, fit_steps)
        )


def predict(seed: int, fit_steps: int) -> list[dict[str, Any]]:
    """Returns predicted and measured final loss of every run of a seed but the fits."""
    fitted, rows = fit(seed, fit_steps), []
    for steps in (fit_steps, 2 * fit_steps):
        for name in (*OTHERS, DESIGNED):
            curve = read_curve(Run(name, steps, seed, fit_steps))
            foreseen = laws.compare(fitted, curve)
            rows.append(
                {
                    "schedule": name,
                    "steps": steps,
                    "seed": seed,
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


def report(fit_steps: int) -> str:
    """Returns the tables of all seeds whose curves are there."""
    seeds = sorted(
        int(path.stem.rpartition("-")[2])
        for path in CURVES.glob(f"{DESIGNED}-{2 * fit_steps}-seed-*.csv")
    )
    rows = [row for seed in seeds for row in predict(seed, fit_steps)]
    lines = [
        "| schedule | steps |"
        + "".join(f" predicted, {s} | measured, {s} | error, {s} |" for s in seeds),
        "| --- | ---: |" + " ---: | ---: | ---: |" * len(seeds),
    ]
    for steps in (fit_steps, 2 * fit_steps):
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
    for steps in (fit_steps, 2 * fit_steps):
        for seed in seeds:
            same = [r for r in rows if (r["steps"], r["seed"]) == (steps, seed)]
            s = summarise(same)
            lines.append(
                f"| {steps} | {seed} | {s['mean error']:.2%} | {s['worst error']:.2%} |"
                f" {s['rank']:.3f} | {s['designed']:.4f} | {s['best']:.4f}"
                f" ({s['best schedule']}) |"
            )
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, then reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--fit-steps", type=int, default=250, help="of the short runs")
    parser.add_argument("--seeds", type=int, default=2, help="whole experiments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="train nothing")
    flags = parser.parse_args()
    if not flags.report:
        if flags.out is None:
            parser.error("--out is needed: the folder of the runs")
        run_all(parallel.Pool(flags.out, flags.jobs), flags.seeds, flags.fit_steps)
    print(report(flags.fit_steps))


if __name__ == "__main__":
    main()
