"""A run whose batch grows while it goes on.

An update takes some microbatches, one after the other, and the controller says how many
(see `controllers.batch_size`). A microbatch is a slice of one of the workload's
batches. The run counts them in the place of steps, so that evaluations, checkpoints and
the schedule come after as many examples whatever the batch. Gradients are summed up as
they come: the memory is that of one microbatch and two gradients.

The variance of an example is that of the microbatches' mean gradients, times the
examples in one of them: it costs next to nothing, and a layer that looks at a whole
batch, such as batch normalization, is measured as it is trained.

The log has what each update measured, and the controller is a function of that: a
killed run goes on with the same decisions.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np
import optax

from optlab import controllers, lab
from optlab.lab import checkpoints, metrics, placement, programs, terminal, workloads

# What the controller takes in, as the log names it.
MEASURED = ("squared_norm", "variance", "variance_along")


@dataclasses.dataclass(frozen=True)
class Growth:
    """How the batch of a run grows, and the rate with it.

    Attributes:
      controller: Decides after each update.
      schedule: From the number of microbatches that the run has used, an array, to the
        learning rate; the controller's rate multiplies it.
    """

    controller: controllers.BatchSizeController
    schedule: optax.Schedule


class Run(Protocol):
    """What is needed of a run; `train` says more."""

    workload: workloads.Workload
    where: placement.Placement
    functions: programs.Programs
    seed: int
    steps: int
    log: metrics.Log
    saved: checkpoints.Checkpoints | None

    def block_end(self, step: int) -> int:
        """Returns the step of the next look at the device."""
        ...

    def timed(self, seconds: float) -> float | None:
        """Notes the seconds of a step."""
        ...

    def write(self, rows: list[metrics.Row]) -> None:
        """Writes rows to the log."""
        ...

    def look(self, state: Any, before: int, step: int, *, last: bool) -> None:
        """Evaluates a state and saves it where that is due."""
        ...


def follow(growing: Growth, run: Run, state: Any, step: int, bar: terminal.Bar) -> Any:
    """Trains to the end of a run with batches as the controller says.

    Args:
      growing: The controller, and the schedule.
      run: The run, its log cut back to `step`.
      state: State to start from, its optimizer made by `search.steerable`.
      step: Microbatches used.
      bar: Shows the training.

    Returns:
      The last state.

    Raises:
      Diverged: If a loss or an update is not finite.
      LabError: If the run does not fit the controller, or its log is lost.
    """
    controller = growing.controller
    size = int(controller.settings["microbatch_size"])
    read, examples = _reader(run, size)
    _check(controller, state)
    if step == run.steps:
        return state
    now = _replayed(controller, run, step)
    rates = np.broadcast_to(growing.schedule(np.arange(run.steps)), run.steps)
    key = jax.random.key(run.seed)
    while step < run.steps:
        begin, before, ended = time.perf_counter(), step, []
        untested = controller.settings["test_every"] - now.since
        look = min(run.block_end(step), run.steps)
        while step < look and len(ended) < untested:
            stop = min(step + now.microbatches, run.steps)
            rate = np.float32(now.learning_rate * rates[step])
            parts = functools.partial(map, read, range(step, stop))
            state, scalars = _update(controller, run, state, parts, key, rate)
            ended.append((step, stop, scalars))
            step = stop
        ended = jax.device_get(ended)
        seconds = (time.perf_counter() - begin) / (step - before)
        speed = run.timed(seconds)
        tokens = speed and speed * run.workload.tokens_per_step * size / examples
        for start, stop, scalars in ended:
            (row,) = metrics.train_rows([scalars], start, tokens)
            row |= _measured(scalars, size, stop - start)
            run.write([row])
            now = _after(controller, now, row)
        bar.update(step, run.log.rows[-1]["loss"], 1 / seconds)
        run.look(state, before, step, last=step == run.steps)
    return state


def summary(folder: str | os.PathLike) -> str:
    """Says what updates a run took.

    Args:
      folder: The run's folder.
    """
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    sizes = [row["batch_size"] for row in rows]
    if not sizes:
        return "the log of its updates is lost"
    return (
        f"{len(sizes)} updates on {sum(sizes)} examples, in batches of {sizes[0]} to"
        f" {max(sizes)}"
    )


def _reader(run: Run, size: int) -> tuple[Callable[[int], Any], int]:
    """Returns what reads a microbatch, and the examples in the workload's batch."""
    # Slices of one batch come one after the other.
    draw = functools.lru_cache(maxsize=1)(run.workload.batch)
    examples = len(next(iter(draw(run.seed, 0).values())))
    if examples % size:
        raise lab.LabError(
            f"a batch of {run.workload.name} has {examples} examples, which is no"
            f" multiple of microbatch_size={size}"
        )
    parts = examples // size

    def read(index: int) -> Any:
        batch = draw(run.seed, index // parts)
        begin = index % parts * size
        rows = {name: array[begin : begin + size] for name, array in batch.items()}
        return run.where.batch(rows)

    return read, examples


def _check(controller: controllers.BatchSizeController, state: Any) -> None:
    if controller.init().microbatches < 2:
        raise lab.LabError(
            "one microbatch has no variance; let the first batch have two or more"
        )
    leaves = jax.tree_util.tree_leaves_with_path(state)
    if not any(programs.is_rate(path) for path, _ in leaves):
        raise lab.LabError(
            "the optimizer of a run whose batch grows has its learning rate in its"
            " state; make it with search.steerable"
        )


def _update(
    controller: controllers.BatchSizeController,
    run: Run,
    state: Any,
    parts: Callable[[], Iterable[Any]],
    key: jax.Array,
    rate: np.float32,
) -> tuple[Any, Any]:
    """Takes one update; the state is donated."""
    functions = run.functions
    sums, slopes = functions.begin(state), None
    for batch in parts():
        sums = functions.add(state, sums, batch)
    if controller.needs_along:
        slopes = functions.begin_slopes(state)
        for batch in parts():
            slopes = functions.add_slope(state, sums, slopes, batch)
    return functions.apply(state, sums, slopes, key, rate)


def _measured(scalars: Any, size: int, count: int) -> metrics.Row:
    """Returns what an update has measured; the variances are those of an example."""
    square, variance, along = (float(scalars[name]) for name in MEASURED)
    numbers = (square, size * variance, size * along)
    return {"batch_size": size * count, **dict(zip(MEASURED, numbers, strict=True))}


def _after(
    controller: controllers.BatchSizeController,
    now: controllers.BatchSizeState,
    row: metrics.Row,
) -> controllers.BatchSizeState:
    """Returns the controller's state after an update; what is no number was None."""
    numbers = (row[name] for name in MEASURED)
    return controller.step(now, *(math.nan if x is None else x for x in numbers))


def _replayed(
    controller: controllers.BatchSizeController, run: Run, step: int
) -> controllers.BatchSizeState:
    """Returns the controller's state after so many microbatches, from the log."""
    now, at = controller.init(), 0
    for row in run.log.rows:
        if row["kind"] == "train" and row["step"] == at:
            at += row["batch_size"] // controller.settings["microbatch_size"]
            now = _after(controller, now, row)
    if at != step:
        raise lab.LabError(
            f"the log has lost the updates that led to step {step}; start anew in"
            " another folder"
        )
    return now
