"""The loop around the training step: evaluations, log, checkpoints, going on."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from optlab import controllers, lab
from optlab.lab import (
    checkpoints,
    growth,
    metrics,
    placement,
    processes,
    programs,
    search,
    terminal,
    timing,
    workloads,
)

# Steps between two looks at the device; in between the host runs ahead of it.
BLOCK = 10


def train(
    workload: workloads.Workload,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    eval_every: int | None = None,
    checkpoint_every: int | None = None,
    keep: int = 3,
    mesh: jax.sharding.Mesh | None = None,
    param_spec: placement.ParamSpec | None = None,
    model: nnx.Module | None = None,
    measure: bool = True,
    progress: bool = True,
    resume: bool = True,
    label: str = "",
    controller: controllers.Controller | None = None,
    growing: growth.Growth | None = None,
    eval_params: Callable[[Any, Any], Any] | None = None,
) -> metrics.Result:
    """Trains a model; the same call again goes on where the last one was cut off.

    With a folder, an interrupted run ends with parameters and losses that equal those
    of an undisturbed one in every bit: batches and keys depend on seed and step alone,
    and the log is cut back to the checkpoint from which the run goes on.

    Several processes make the same call, after `processes.start` or
    `jax.distributed.initialize`, with a mesh over the devices of all of them and a
    folder that all see. A run may go on with another mesh, or another number of them.

    Args:
      workload: Model, data and loss.
      tx: The optimizer.
      steps: Updates in all.
      seed: Seed of the model, the batches and the keys.
      out: Folder for `metrics.jsonl`, `checkpoints` and the run's fingerprint, or None
        to keep nothing.
      eval_every: Steps between evaluations; a tenth of the run by default. The last
        step is always evaluated.
      checkpoint_every: Steps between checkpoints; a tenth of the run by default. The
        last step always has one.
      keep: Checkpoints to keep, the newest ones.
      mesh: Mesh with Explicit or Auto axes; those named 'data' and 'fsdp' divide the
        batch, or the first one.
      param_spec: From a parameter's path and value to its `PartitionSpec` on the mesh;
        None replicates the parameters.
      model: Model to train, changed in place when the run ends; by default the
        workload makes one from the seed.
      measure: Whether to time the optimizer alone at the end.
      progress: Whether to show a progress bar on a terminal.
      resume: False to refuse a folder that holds this run already.
      label: Name of the chain; a folder of a run with another one is refused.
      controller: Searches the learning rate while the run goes on; `tx` is made by
        `search.steerable` then. What it throws away comes on top of `steps`.
      growing: Lets the batch grow, see `growth`; `tx` is made by `search.steerable`
        then, and everything that is told in steps counts microbatches.
      eval_params: From state and parameters to those to evaluate, such as
        `optimizers.triple_momentum_eval_params`; None to evaluate where gradients are
        taken. The model ends with the parameters of training.

    Returns:
      What the run measured.

    Raises:
      LabError: If a number makes no sense; the folder cannot be written or holds
        another run; the loss is no longer finite. What was saved is kept.

    Example:
      >>> from optlab import optimizers
      >>> from optlab.lab import train, workloads
      >>> workload = workloads.get("digits", size="tiny")
      >>> result = train.train(workload, optimizers.adamw(0.01), steps=20)
      >>> result.final_loss < result.train_losses[0]
      True
    """
    tenth = max(1, steps // 10)
    eval_every = tenth if eval_every is None else eval_every
    checkpoint_every = tenth if checkpoint_every is None else checkpoint_every
    _refuse_below_one(
        steps=steps, eval_every=eval_every, checkpoint_every=checkpoint_every, keep=keep
    )
    facts = _facts(workload, seed, label, controller, growing)
    where = placement.Placement(mesh, param_spec)
    model = workload.make_model(seed) if model is None else model
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.together())
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        graphdef, state = programs.initial_state(model, tx, where)
        folder, saved, pinned = None, None, where.pinned(state)
        if out is not None:
            folder = pathlib.Path(out)
            own = checkpoints.fingerprint(state, **facts, steps=steps, seed=seed)
            stack.enter_context(checkpoints.claim(folder, own, resume=resume))
            saved = checkpoints.Checkpoints(folder / "checkpoints", own, keep)
        functions = programs.programs(graphdef, workload.loss, pinned, eval_params)
        run = _Run(
            workload=workload,
            where=where,
            functions=functions,
            seed=seed,
            steps=steps,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
            log=metrics.Log(folder and folder / "metrics.jsonl"),
            saved=saved,
        )
        start, state = run.restore(state)
        name, total = label or workload.name, steps
        if controller is not None:
            total += controller.search_steps
        with terminal.Bar(name, total, start, show=progress) as bar:
            if growing is not None:
                state = growth.follow(growing, run, state, start, bar)
            elif controller is not None:
                state = search.follow(controller, run, state, start, bar)
            else:
                state = run.advance(state, start, steps, bar)
            run.finish(state)
        timings = run.timings(state, folder and folder / "timings.json", measure)
    nnx.update(model, state[0])
    return metrics.Result(
        workload=workload.name,
        label=label,
        seed=seed,
        steps=steps,
        resumed_from=start or None,
        final_loss=run.log.evaluations()[-1][1],
        evaluations=run.log.evaluations(),
        train_losses=run.log.train_losses(steps),
        **dataclasses.asdict(timings),
        **_sizes(state),
    )


def _facts(
    workload: workloads.Workload,
    seed: int,
    label: str,
    controller: controllers.Controller | None,
    growing: growth.Growth | None,
) -> dict[str, Any]:
    """Returns what tells a run from others beside its state, steps and seed."""
    if seed < 0:
        raise lab.LabError(f"seed must be at least 0, got {seed}")
    if controller is not None and growing is not None:
        raise lab.LabError("a run searches its rate or grows its batch, not both")
    facts: dict[str, Any] = {"workload": workload.name, "chain": label}
    if controller is not None:
        facts["search"] = dict(controller.settings)
    if growing is not None:
        facts["batch_size"] = dict(growing.controller.settings)
    return facts


def _refuse_below_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise lab.LabError(f"{name} must be at least 1, got {number}")


def _passes(every: int, before: int, step: int) -> bool:
    return step // every > before // every


@dataclasses.dataclass
class _Run:
    """What stays the same during a run; the state goes through the methods."""

    workload: workloads.Workload
    where: placement.Placement
    functions: programs.Programs
    seed: int
    steps: int
    eval_every: int
    checkpoint_every: int
    log: metrics.Log
    saved: checkpoints.Checkpoints | None
    _first_call: float | None = dataclasses.field(default=None, init=False)
    _seconds: list[float] = dataclasses.field(default_factory=list, init=False)

    def restore(self, state: Any) -> tuple[int, Any]:
        """Returns step and state to start from, and cuts the log back to it."""
        found = self.saved.restore(state) if self.saved else None
        start, state = found or (0, state)
        self.log.cut_back(start)
        return start, state

    def advance(
        self, state: Any, step: int, stop: int, bar: terminal.Bar, *, spent: int = 0
    ) -> Any:
        """Trains from a step to another one, where a checkpoint is left.

        Args:
          state: The state; it is donated.
          step: Updates done.
          stop: Updates that shall be done.
          bar: Shows them.
          spent: Batches that a search has used up beside them.

        Returns:
          The state then.

        Raises:
          Diverged: If a loss or an update is not finite.
        """
        while step < stop:
            end = min(self.block_end(step), stop)
            state, block, seconds = self.block(state, step, end, spent=spent)
            rate = self.workload.tokens_per_step / seconds if self._seconds else None
            self.write(metrics.train_rows(block, step, rate))
            bar.update(end + spent, self.log.rows[-1]["loss"], 1 / seconds)
            self.look(state, step, end, last=end == stop)
            step = end
        return state

    def look(self, state: Any, before: int, step: int, *, last: bool) -> None:
        """Evaluates a state and saves it where that is due.

        Args:
          state: The state after `step` updates; it is kept.
          before: Updates done at the last look.
          step: Updates done.
          last: Whether to save it in any case.

        Raises:
          LabError: If the run was asked to end.
        """
        if _passes(self.eval_every, before, step) or step == self.steps:
            self.write([self.evaluation(state, step)])
        ends = processes.preempted()
        due = _passes(self.checkpoint_every, before, step) or last or ends
        if self.saved and due:
            self.log.sync()
            self.saved.save(step, state)
        if ends:
            raise lab.LabError(f"asked to end (SIGTERM); stopped at step {step}")

    def finish(self, state: Any) -> None:
        """Evaluates the last state if somebody has removed the log."""
        if not any(at == self.steps for at, _ in self.log.evaluations()):
            self.write([self.evaluation(state, self.steps)])

    def block_end(self, step: int) -> int:
        """Returns the step of the next look at the device."""
        if self._first_call is None:
            return step + 1  # The call that compiles is timed alone.
        ends = [(step // n + 1) * n for n in (self.eval_every, self.checkpoint_every)]
        return min(step + BLOCK, *ends)

    def timed(self, seconds: float) -> float | None:
        """Notes the seconds of a step; returns steps a second but for the first."""
        if self._first_call is None:
            self._first_call = seconds
            return None
        self._seconds.append(seconds)
        return 1 / seconds

    def block(
        self, state: Any, step: int, stop: int, *, spent: int = 0
    ) -> tuple[Any, list[Any], float]:
        """Takes steps without a look at the device in between.

        Args:
          state: The state; it is donated.
          step: Updates done.
          stop: Updates that shall be done.
          spent: As for `advance`.

        Returns:
          The state then, what each step returned, and the seconds for a step.
        """
        begin, scalars = time.perf_counter(), []
        key = jax.random.key(self.seed)
        if spent:
            key = jax.random.fold_in(key, spent)
        for index in range(step + spent, stop + spent):
            batch = self.where.batch(self.workload.batch(self.seed, index))
            state, row = self.functions.step(state, batch, key)
            scalars.append(row)
        scalars = jax.device_get(scalars)
        seconds = (time.perf_counter() - begin) / (stop - step)
        self.timed(seconds)
        return state, scalars, seconds

    def evaluation(self, state: Any, step: int) -> metrics.Row:
        """Returns the row of an evaluation; the state is kept."""
        place = functools.partial(self.where.batch, whole=True)
        batches = map(place, self.workload.valid_batches())
        found = jax.device_get([self.functions.evaluate(state, b) for b in batches])
        return metrics.eval_row(found, step)

    def write(self, rows: list[metrics.Row]) -> None:
        """Writes rows, and stops the run if one tells that it has diverged.

        A non-finite update counts, for the next checkpoint would hold its result.

        Args:
          rows: The rows.

        Raises:
          Diverged: If a loss or an update is not finite.
        """
        self.log.write(rows)
        for row in rows:
            for name in ("loss", "update_norm"):
                if math.isfinite(row.get(name, 0.0)):
                    continue
                good = self.saved.describe() if self.saved else "none"
                raise lab.Diverged(
                    f"{row['kind']} {name.replace('_', ' ')} is {row[name]} at step"
                    f" {row['step']}; last good checkpoint: {good}; a smaller learning"
                    " rate may help"
                )

    def timings(
        self, state: Any, path: pathlib.Path | None, measure: bool
    ) -> timing.Timings:
        """Returns the times of the run, measured now or kept from before."""
        kept = timing.read(path)
        if kept and self._first_call is None:
            return kept  # The run was finished before.
        seconds, share = self._compare(state) if measure else (None, None)
        if self._seconds:
            seconds = statistics.median(self._seconds)
        compiling = None
        if self._first_call is not None and seconds is not None:
            compiling = max(0.0, self._first_call - seconds)
        timings = timing.Timings(seconds, share, compiling)
        return timing.keep(path, timings)

    def _compare(self, state: Any) -> tuple[float, float]:
        batch = self.where.batch(self.workload.batch(self.seed, self.steps))
        key = jax.random.key(self.seed)
        step, update = (
            lambda state, function=function: function(state, batch, key)[0]
            for function in (self.functions.step, self.functions.update)
        )
        return timing.compare(step, update, state)


def _sizes(state: Any) -> dict[str, Any]:
    """Counts parameters, and bytes of optimizer state for each."""
    parameters = sum(
        x.size for x in jax.tree.leaves(nnx.filter_state(state[0], nnx.Param))
    )
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state[1]["opt_state"]))
    return {
        "parameters": parameters,
        "state_bytes_per_parameter": state_bytes / max(1, parameters),
    }
