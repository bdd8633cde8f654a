"""Sweeps over learning rates: one run after another, or all in one vmapped run."""

import dataclasses
import itertools
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optlab import lab
from optlab.lab import flax_step, race, runs, terminal, workloads
from optlab.lab.chains import Chain, parse

# Rates of one point: the optimizer's and, if it has a rest, the rest's.
Rates = tuple[float, ...]
KEYS = ("learning_rate", "rest.learning_rate")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What decides the numbers of a sweep.

    Attributes:
      workload: Name of the workload.
      chain: The chain, explicit; its learning rates give way to the sweep's.
      rates: Learning rates to try.
      rest_rates: Learning rates of the rest to try, each with each of `rates`; empty
        for the chain's own.
      seeds: Number of seeds; they are 0, 1, ..., seeds - 1.
      size: Size of the workload, such as "default" or "tiny".
      vmap: Whether all rates run at once.

    Raises:
      ValueError: If the workload is unknown, there is nothing to try, or the chain has
        no rest for `rest_rates`.
    """

    workload: str
    chain: Chain
    rates: tuple[float, ...]
    rest_rates: tuple[float, ...] = ()
    seeds: int = 1
    size: str = "default"
    vmap: bool = False

    def __post_init__(self):
        runs.check_workload(self.workload)
        if not self.rates or self.seeds < 1:
            raise ValueError("a sweep tries at least one rate on at least one seed")
        if self.rest_rates and not self.chain.has_rest:
            raise ValueError(f"{self.chain.optimizer.name} has no rest to sweep")

    @property
    def points(self) -> tuple[Rates, ...]:
        """Each combination of rates, in the order of `KEYS`."""
        if not self.chain.has_rest:
            return tuple((rate,) for rate in self.rates)
        own: Any = self.chain.rest.settings["learning_rate"]
        return tuple(itertools.product(self.rates, self.rest_rates or (own,)))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the numbers of a run, beside its chain and its seed."""
        workload = workloads.get(self.workload, size=self.size)
        return {"workload": runs.fingerprint(workload), "vmap": self.vmap}


def plan(workload: str, text: str, steps: int | None, **settings: Any) -> Sweep:
    """Plans a sweep from a chain's text.

    Args:
      workload: Name of the workload.
      text: The chain.
      steps: Steps of each run, if the text does not say them.
      **settings: Other fields of `Sweep`.

    Returns:
      The sweep, with everything that the text left out written down.

    Raises:
      ValueError: If the chain, the workload or a number is not in order.
    """
    chain = parse(text).explicit(steps, workload)
    planned = Sweep(workload, chain, **settings)
    for rates in planned.points:
        _with_rates(chain, rates).build()
    return planned


def run(sweep: Sweep, out: str | os.PathLike, *, command: str = "") -> dict[str, Any]:
    """Runs what is not finished yet and writes sweep.json.

    Args:
      sweep: The sweep.
      out: Folder for the results.
      command: The command line, for the record.

    Returns:
      The results, as sweep.json holds them. A rate whose run diverged for some seed
      has None for its mean loss.

    Raises:
      LabError: If the folder cannot be written in, or a run fails for another reason
        than a loss that is not finite.
    """
    out = pathlib.Path(out)
    runs.make_folder(out)
    workload = workloads.get(sweep.workload, size=sweep.size)
    if sweep.vmap:
        losses = [_vmapped(sweep, workload, seed, out) for seed in range(sweep.seeds)]
    else:
        losses = [
            _one_by_one(sweep, workload, seed, out) for seed in range(sweep.seeds)
        ]
    results = {
        "command": command,
        **summarise(sweep, losses),
        "versions": runs.versions(),
    }
    runs.write_json(out / "sweep.json", results)
    return results


def summarise(sweep: Sweep, losses: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Summarises the losses of a sweep.

    Args:
      sweep: The sweep.
      losses: For each seed the final loss of each point, None if it diverged.

    Returns:
      The results but for the command and the versions.
    """
    points = []
    for index, rates in enumerate(sweep.points):
        own = [by_point[index] for by_point in losses]
        finite = [loss for loss in own if loss is not None]
        diverged = {"mean": None, "spread": None}
        points.append(
            {
                "chain": str(_with_rates(sweep.chain, rates)),
                "rates": dict(zip(KEYS, rates, strict=False)),
                "final_loss": race.spread(finite) if finite == own else diverged,
                "final_loss_by_seed": own,
            }
        )
    finished = [point for point in points if point["final_loss"]["mean"] is not None]
    best = min(finished, key=lambda point: point["final_loss"]["mean"], default=None)
    return {
        "workload": sweep.workload,
        "size": sweep.size,
        "vmap": sweep.vmap,
        "chain": sweep.chain.name,
        "steps": sweep.chain.steps,
        "seeds": list(range(sweep.seeds)),
        "points": points,
        "best": best,
        "at_edge": [] if best is None else _at_edge(sweep, best["rates"]),
    }


def _at_edge(sweep: Sweep, best: Mapping[str, float]) -> list[str]:
    """The rates whose best value is the smallest or the largest one tried."""
    edges = []
    for key, tried in zip(KEYS, (sweep.rates, sweep.rest_rates), strict=True):
        if len(tried) > 1 and best[key] in (min(tried), max(tried)):
            edges.append(key)
    return edges


def _with_rates(chain: Chain, rates: Sequence[Any]) -> Chain:
    """The chain with a point's rates; they may be traced."""
    return chain.replace(**dict(zip(KEYS, rates, strict=False)))


def _one_by_one(
    sweep: Sweep, workload: Any, seed: int, out: pathlib.Path
) -> list[float | None]:
    losses = []
    for rates in sweep.points:
        chain = _with_rates(sweep.chain, rates)
        folder = out / runs.folder(chain, seed, sweep.facts)
        number = seed * len(sweep.points) + len(losses) + 1
        total = sweep.seeds * len(sweep.points)
        terminal.report(f"run {number} of {total}: {chain}, seed {seed}")
        try:
            record = runs.finish(
                workload,
                chain.build()[0],
                folder,
                steps=chain.length,
                seed=seed,
                eval_every=chain.length,
                measure=False,
                label=f"{chain.name} seed {seed}",
                eval_params=chain.eval_params,
            )
        except lab.Diverged as error:
            record = {"final_loss": None, "error": str(error)}
            runs.write_json(folder / "result.json", record)
        losses.append(record["final_loss"])
    return losses


def _vmapped(
    sweep: Sweep, workload: Any, seed: int, out: pathlib.Path
) -> list[float | None]:
    """Trains every point at once: the rates are traced numbers of one program."""
    facts = {**sweep.facts, "points": sweep.points}
    record = out / runs.folder(sweep.chain, seed, facts) / "result.json"
    if not record.exists():
        losses = _train_vmapped(sweep, workload, seed)
        finite = [loss if math.isfinite(loss) else None for loss in losses]
        runs.write_json(record, {"final_losses": finite})
    return runs.read_json(record)["final_losses"]


def _train_vmapped(sweep: Sweep, workload: Any, seed: int) -> list[float]:
    initial = nnx.split(workload.make_model(seed))
    rates = tuple(jnp.asarray(column) for column in zip(*sweep.points, strict=True))

    def pair(rates: Any, state: Any = None) -> tuple[nnx.Module, nnx.Optimizer]:
        model = nnx.merge(*initial, copy=True)
        tx, _ = _with_rates(sweep.chain, rates).build()
        both = model, nnx.Optimizer(model, tx, wrt=nnx.Param)
        if state is not None:
            nnx.update(both, state)
        return both

    def start(rates: Any) -> Any:
        return nnx.state(pair(rates))

    def step(rates: Any, state: Any, batch: Any, key: jax.Array) -> Any:
        both = pair(rates, state)
        scalars = flax_step.train_step(*both, batch, workload.loss, key=key)
        return nnx.state(both), scalars["loss"]

    def evaluate(rates: Any, state: Any, batch: Any) -> jax.Array:
        model, optimizer = pair(rates, state)
        params = flax_step.params_to_evaluate(model, optimizer, sweep.chain.eval_params)
        return flax_step.evaluate(model, batch, workload.loss, params=params)["loss"]

    step = jax.jit(jax.vmap(step, in_axes=(0, 0, None, None)), donate_argnums=1)
    evaluate = jax.jit(jax.vmap(evaluate, in_axes=(0, 0, None)))
    state, key = jax.vmap(start)(rates), jax.random.key(seed)
    label = f"{sweep.chain.name}, {len(sweep.points)} rates, seed {seed}"
    with terminal.Bar(label, sweep.chain.length) as bar:
        for count in range(sweep.chain.length):
            begin, batch = time.perf_counter(), workload.batch(seed, count)
            state, losses = step(rates, state, batch, jax.random.fold_in(key, count))
            best = float(jnp.nanmin(losses))
            bar.update(count + 1, best, 1 / (time.perf_counter() - begin))
    found = [evaluate(rates, state, batch) for batch in workload.valid_batches()]
    return [float(loss) for loss in np.stack(found).mean(axis=0, dtype=np.float64)]
