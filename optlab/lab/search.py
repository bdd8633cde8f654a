"""A run whose learning rate a controller searches while it goes on.

The controller says what to do (see `controllers.autolrs`); here it is done. A trial
starts from a copy of the model and its optimizer, batch statistics included, and is
forgotten. Each trial sees batches and random keys of its own. The log has a row of kind
'search' for each decision, with the controller's whole state, so that a killed run goes
on in the middle of a search.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from optlab import controllers, lab
from optlab.lab import checkpoints, metrics, programs, terminal

# Steps of a trial between two looks at its losses.
BLOCK = 10

State = controllers.AutoLRSState


class Run(Protocol):
    """What the search needs of a run; `train` says more."""

    steps: int
    log: metrics.Log
    saved: checkpoints.Checkpoints | None

    def advance(
        self, state: Any, step: int, stop: int, bar: terminal.Bar, *, spent: int
    ) -> Any:
        """Trains from a step to another one; writes log and checkpoints."""
        ...

    def block(
        self, state: Any, step: int, stop: int, *, spent: int
    ) -> tuple[Any, list[Any], float]:
        """Takes steps and returns what each of them returned."""
        ...

    def evaluation(self, state: Any, step: int) -> metrics.Row:
        """Evaluates a state."""
        ...


def steerable(
    build: Callable[[Any], optax.GradientTransformation], learning_rate: float
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer whose learning rate is a number in its state.

    One compiled step serves every rate.

    Args:
      build: From a rate, which will be traced, to the optimizer. All rates inside must
        follow it.
      learning_rate: The rate to start with.

    Returns:
      The optimizer.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> from optlab.lab import search
      >>> tx = search.steerable(optimizers.sgd, 0.5)
      >>> state = tx.init(jnp.ones(1))
      >>> state.hyperparams["learning_rate"] = jnp.float32(0.25)
      >>> print(tx.update(jnp.ones(1), state)[0])
      [-0.25]
    """

    def steered(learning_rate: Any) -> optax.GradientTransformation:
        return build(learning_rate)

    # The default float whatever the parameters' dtype: bfloat16 would round the rate.
    wide = jnp.result_type(float)
    inject = optax.inject_hyperparams(steered, hyperparam_dtype=wide)
    return inject(learning_rate=learning_rate)


def follow(
    controller: controllers.Controller,
    run: Run,
    state: Any,
    step: int,
    bar: terminal.Bar,
) -> Any:
    """Trains to the end of a run and does what the controller says.

    Args:
      controller: The controller.
      run: The run, its log cut back to `step`.
      state: State to start from, its optimizer made by `steerable`.
      step: Updates done.
      bar: Shows training and search.

    Returns:
      The last state.

    Raises:
      Diverged: If no rate works.
      LabError: If the run does not fit the controller.
    """
    _check(controller, run, state)
    if step == run.steps:
        return state
    now, start = _where(controller, run, step), None
    if run.saved and not run.saved.steps():
        run.saved.save(step, state)
    while now.action in ("try", "train"):
        if step == now.trained:
            start = state  # A resumed run may be past it, and has it on the disk.
            if run.saved:
                run.saved.hold = step
        moving = _with_rate(jax.tree.map(jnp.copy, state), now.rate)
        if now.action == "try":
            losses = _trial(run, moving, now, bar)
        else:
            try:
                stop, spent = now.trained + now.steps, now.searched
                state = run.advance(moving, step, stop, bar, spent=spent)
                step, losses = stop, []
            except lab.Diverged:
                state, step = _go_back(run, state, start, now), now.trained
                losses = [math.nan]
        now = controller.step(now, losses)
        if losses:
            _log(controller, run, now, bar)
    if now.action == "diverged":
        raise lab.Diverged(_all_diverged(controller, now))
    return state


def _check(controller: controllers.Controller, run: Run, state: Any) -> None:
    if controller.train_steps != run.steps:
        raise lab.LabError(
            f"the controller plans {controller.train_steps} steps, the run has"
            f" {run.steps}"
        )
    if not any(
        programs.is_rate(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ):
        raise lab.LabError(
            "the optimizer of a searched run has its learning rate in its state; make"
            " it with search.steerable"
        )


def _where(controller: controllers.Controller, run: Run, step: int) -> State:
    """Returns the controller's state after so many updates, as the log has it."""
    rows = [row for row in run.log.rows if row["kind"] == "search"]
    now = controller.init()
    if rows:
        now = controllers.AutoLRSState.from_dict(rows[-1]["state"])
    if now.action == "train" and step == now.trained + now.steps:
        now = controller.step(now, ())
    last = now.trained + (now.steps if now.action == "train" else 0)
    if not now.trained <= step <= last:
        raise lab.LabError(
            f"the log has lost the search that led to step {step}; start anew in"
            " another folder"
        )
    if run.saved:
        run.saved.hold = now.trained
    return now


def _trial(run: Run, state: Any, now: State, bar: terminal.Bar) -> list[float]:
    """Returns the losses that a trial reports; it stops at one that is not finite."""
    every, done = now.evaluate_every, 0
    losses = [run.evaluation(state, now.trained)["loss"]] if every else []
    while done < now.steps:
        stop = min(done + (every or BLOCK), now.steps)
        begin, end = now.trained + done, now.trained + stop
        state, rows, seconds = run.block(state, begin, end, spent=now.searched)
        training = [float(row["loss"]) for row in rows]
        sizes = [float(row["update_norm"]) for row in rows]
        if not all(map(math.isfinite, training + sizes)):
            return [*losses, math.nan]
        if not every:
            losses += training
        elif stop % every == 0:
            losses.append(run.evaluation(state, end)["loss"])
        bar.update(end + now.searched, training[-1], 1 / seconds)
        done = stop
    return losses


def _go_back(run: Run, state: Any, start: Any, now: State) -> Any:
    """Returns the state at the start of a stage that diverged; cuts all back to it."""
    if run.saved:
        run.saved.remove_after(now.trained)
    run.log.cut_back(now.trained)
    if start is not None:
        return start
    found = run.saved.restore(state) if run.saved else None
    if found is None or found[0] != now.trained:
        raise lab.Diverged(
            f"the stage from step {now.trained} on diverged at rate {now.rate:.3g}, and"
            " the checkpoint of its start is lost"
        )
    return found[1]


def _log(
    controller: controllers.Controller, run: Run, now: State, bar: terminal.Bar
) -> None:
    budget = {"searched": now.searched, "search_steps": controller.search_steps}
    row = {"kind": "search", "step": now.trained, **budget, "state": now._asdict()}
    run.log.write([row])
    if now.action == "train":
        bar.say(
            f"from step {now.trained} on {now.steps} steps at rate {now.rate:.3g},"
            f" forecast {min(now.forecasts):.4g}; searched {now.searched} of"
            f" {controller.search_steps} steps"
        )


def _all_diverged(controller: controllers.Controller, now: State) -> str:
    if not now.rates:
        rate = controller.settings["warmup_rate"]
        return f"the warm-up to rate {rate} diverged; take a smaller one"
    low, high = (controller.settings[name] for name in ("min_rate", "max_rate"))
    return (
        f"all {len(now.rates)} rates from {low:.3g} to {high:.3g} diverged in the stage"
        f" from step {now.trained} on; take a smaller min_rate"
    )


def _with_rate(state: Any, rate: float) -> Any:
    """Returns a state with another learning rate."""

    def put(path: Any, leaf: jax.Array) -> jax.Array:
        if not programs.is_rate(path):
            return leaf
        return jax.device_put(jnp.asarray(rate, leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(put, state)
