"""What races on digits and on text share: seeds, lengths, and a run in one program."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from optlab.lab import runs, workloads

SWEEP_SEEDS = {"digits": (0, 4, 5), "shakespeare": (0,)}
SEEDS = (1, 2, 3)
STEPS = {"digits": 200, "shakespeare": 120}
WARMUP = 0.1  # of the steps


def trainer(
    task: workloads.Workload,
    steps: int,
    make: Callable[[Any], optax.GradientTransformation],
    evaluated: Callable[[Any, Any], Any] | None = None,
) -> Callable[[Any, int], tuple[float, float]]:
    """Compiles a whole run.

    Args:
      task: What is trained.
      steps: Length of the run.
      make: From what runs differ in, a tree of numbers and arrays, to the optimizer.
      evaluated: From its last state and the parameters to those to evaluate.

    Returns:
      Function from such a tree and a seed to validation loss and accuracy at the end;
      the loss is infinite where the run diverged.
    """
    graph, _ = nnx.split(task.make_model(0))
    valid = task.valid_batches()

    def loss(params: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return task.loss(nnx.merge(graph, params), batch)

    @jax.jit
    def train(given: Any, params: Any, batches: Any) -> Any:
        tx = optax.with_extra_args_support(make(given))

        def step(carry: Any, batch: Any) -> tuple[Any, None]:
            params, state = carry
            (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return params if evaluated is None else evaluated(state, params)

    @jax.jit
    def ends(params: Any) -> tuple[jax.Array, jax.Array]:
        losses, facts = zip(*(loss(params, batch) for batch in valid), strict=True)
        accuracies = [fact["accuracy"] for fact in facts]
        return jnp.mean(jnp.stack(losses)), jnp.mean(jnp.stack(accuracies))

    def trained(given: Any, seed: int) -> tuple[float, float]:
        params = _start(task, seed)
        final, accuracy = ends(train(given, params, _batches(task, seed, steps)))
        return float(final) if math.isfinite(final) else math.inf, float(accuracy)

    return trained


def kept(out: pathlib.Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measures and writes what was found to a folder, or reads back what is there."""
    record = out / "result.json"
    if record.exists():
        return runs.read_json(record)
    out.mkdir(parents=True, exist_ok=True)
    found = measure()
    runs.write_json(record, found)
    return found


def folder(name: str) -> str:
    """Makes the name of a folder from that of a method."""
    return name.replace(", ", "-").replace(" ", "-")


def finite(loss: float) -> float | None:
    """Returns a loss as JSON has it: null where the run diverged."""
    return loss if math.isfinite(loss) else None


@functools.lru_cache(maxsize=8)
def _start(task: workloads.Workload, seed: int) -> Any:
    return nnx.split(task.make_model(seed))[1]


@functools.lru_cache(maxsize=8)
def _batches(task: workloads.Workload, seed: int, steps: int) -> Any:
    rows = [task.batch(seed, step) for step in range(steps)]
    return jax.tree.map(lambda *parts: np.stack(parts), *rows)
