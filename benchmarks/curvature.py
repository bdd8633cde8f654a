"""Curvature methods against the plain ones that they refine, on small tasks.

    python benchmarks/curvature.py

Three pairs: MKOR and SGD with momentum on an autoencoder of the digits, M-FAC and SGD
with momentum on a classifier of them, AdaHessian and Adam on a logistic regression
whose inputs have scales from 1 to 1/1000. Each method has three or four settings, and
each of these a grid of rates in factors of two that is extended until its best rate
lies inside, by the mean of three seeds; then come six other seeds.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import grids
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from optlab import optimizers, schedules

RECORD = pathlib.Path(__file__).with_suffix(".json")
SWEEP_SEEDS, SEEDS = (0, 4, 5), (1, 2, 3, 6, 7, 8)
BATCH = 64


def images() -> tuple[jax.Array, jax.Array]:
    """Returns the digits, shuffled: pixels from 0 to 1, shape (n, 64), and labels."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return jnp.asarray(pixels[order] / 16, jnp.float32), jnp.asarray(labels[order])


def layers(key: jax.Array, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Makes dense layers with LeCun's scale."""
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(k, (m, n)) / m**0.5,
            "bias": jnp.zeros(n),
        }
        for i, (k, (m, n)) in enumerate(
            zip(keys, itertools.pairwise(sizes), strict=True)
        )
    }


def network(
    params: dict[str, Any], x: jax.Array, activation: Callable, shifts: Any = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the output, and what went into each layer; shifts are added behind."""
    inputs = {}
    for i, (name, layer) in enumerate(params.items()):
        inputs[name] = x = activation(x) if i else x
        x = x @ layer["kernel"] + layer["bias"] + (shifts[name] if shifts else 0.0)
    return x, inputs


@dataclasses.dataclass(frozen=True)
class Task:
    """A loss with its data.

    Attributes:
      start: From a seed to parameters.
      batch: From a seed and a step to what `loss` takes beside the parameters.
      loss: From parameters, batch and shifts of the layers to the loss and the inputs.
      valid: From parameters to the loss that counts.
      steps: Length of a run.
      every: Steps from one measurement to the next.
    """

    start: Callable[[int], Any]
    batch: Callable[[Any, Any], Any]
    loss: Callable[..., tuple[jax.Array, Any]]
    valid: Callable[[Any], jax.Array]
    steps: int
    every: int


def _drawn(seed: Any, step: Any, size: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.randint(key, (BATCH,), 0, size)


def autoencoder() -> Task:
    """Digits through sixteen numbers and back; cross-entropy of the pixels."""
    x, _ = images()
    train, valid = x[:1500], x[1500:]

    def loss(params, x, shifts=None):
        out, inputs = network(params, x, jnp.tanh, shifts)
        return optax.sigmoid_binary_cross_entropy(out, x).sum(axis=1).mean(), inputs

    return Task(
        start=lambda seed: layers(jax.random.key(seed), (64, 48, 16, 48, 64)),
        batch=lambda seed, step: train[_drawn(seed, step, 1500)],
        loss=loss,
        valid=lambda params: loss(params, valid)[0],
        steps=1000,
        every=20,
    )


def classifier() -> Task:
    """Digits to their labels."""
    x, y = images()

    def loss(params, batch, shifts=None):
        out, inputs = network(params, x[batch], jax.nn.relu, shifts)
        found = optax.softmax_cross_entropy_with_integer_labels(out, y[batch])
        return found.mean(), inputs

    return Task(
        start=lambda seed: layers(jax.random.key(seed), (64, 32, 10)),
        batch=lambda seed, step: _drawn(seed, step, 1500),
        loss=loss,
        valid=lambda params: loss(params, jnp.arange(1500, len(x)))[0],
        steps=300,
        every=10,
    )


def regression() -> Task:
    """Logistic regression, full batches, inputs of very different scales."""
    key = jax.random.key(7)
    scales = jnp.geomspace(1.0, 1e-3, 30)
    z = jax.random.normal(key, (1000, 30))
    truth = jax.random.normal(jax.random.fold_in(key, 1), (30,))
    chance = jax.nn.sigmoid(z @ truth)
    y = jax.random.bernoulli(jax.random.fold_in(key, 2), chance).astype(jnp.float32)

    def loss(params, batch, shifts=None):
        out = (batch * scales) @ params["w"]
        return optax.sigmoid_binary_cross_entropy(out, y).mean(), None

    return Task(
        start=lambda seed: {
            "w": 0.01 * jax.random.normal(jax.random.key(seed), (30,)) / scales
        },
        batch=lambda seed, step: z,
        loss=loss,
        valid=lambda params: loss(params, z)[0],
        steps=60,
        every=2,
    )


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer, what is tried of it, and what its update takes.

    Attributes:
      build: From a schedule and settings to the optimizer.
      rates: Three rates in factors of two, with which each sweep begins.
      settings: Arguments to try, each with a sweep of its own.
      needs: "layer_stats", "loss_fn" or nothing.
    """

    build: Callable[..., optax.GradientTransformation]
    rates: tuple[float, ...]
    settings: tuple[dict[str, Any], ...]
    needs: str = ""


SGD = Method(
    optimizers.sgd,
    (0.02, 0.04, 0.08),
    ({"momentum": 0.7}, {"momentum": 0.8}, {"momentum": 0.9}, {"momentum": 0.95}),
)
PAIRS: dict[str, tuple[Callable[[], Task], dict[str, Method]]] = {
    "autoencoder": (
        autoencoder,
        {
            "sgd": SGD,
            "mkor": Method(
                optimizers.mkor,
                (0.02, 0.04, 0.08),
                (
                    {},
                    {"every": 1, "decay": 0.99, "momentum": 0.7},
                    {"every": 1, "decay": 0.99, "momentum": 0.8},
                    {"every": 1, "decay": 0.99},
                ),
                "layer_stats",
            ),
        },
    ),
    "classifier": (
        classifier,
        {
            "sgd": SGD,
            "mfac": Method(
                functools.partial(optimizers.mfac, b1=0.9),
                (0.004, 0.008, 0.016),
                (
                    {"window": 64, "damping": 1e-3},
                    {"window": 64, "damping": 1e-4},
                    {"window": 256, "damping": 1e-3},
                ),
            ),
        },
    ),
    "regression": (
        regression,
        {
            "adam": Method(
                functools.partial(optimizers.adamw, weight_decay=0.0),
                (4.0, 8.0, 16.0),
                ({}, {"b2": 0.99}, {"b1": 0.8}),
            ),
            "adahessian": Method(
                optimizers.adahessian,
                (1.0, 2.0, 4.0),
                ({}, {"eps": 1e-8}, {"eps": 1e-8, "average": "none"}),
                "loss_fn",
            ),
        },
    ),
}


def runner(
    task: Task, method: Method, settings: dict[str, Any]
) -> Callable[[float, int], np.ndarray]:
    """Returns the function that trains: rate and seed to losses, all of one program."""

    def step(tx, seed, carry, index):
        params, state = carry
        batch, extra = task.batch(seed, index), {}
        if method.needs == "layer_stats":
            # Zeros behind every layer: their gradient is that of the layer's output.
            shifts = {
                name: jnp.zeros((len(batch), layer["bias"].size))
                for name, layer in params.items()
            }
            gradients = jax.grad(task.loss, argnums=(0, 2), has_aux=True)
            (gradient, behind), inputs = gradients(params, batch, shifts)
            extra["layer_stats"] = {
                name: (inputs[name].mean(axis=0), behind[name].sum(axis=0))
                for name in params
            }
        else:
            gradient, _ = jax.grad(task.loss, has_aux=True)(params, batch)
        if method.needs == "loss_fn":
            extra["loss_fn"] = lambda params: task.loss(params, batch)[0]
            extra["key"] = jax.random.fold_in(jax.random.key(seed), index)
        updates, state = tx.update(gradient, state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(rate, seed):
        # Half constant, then down to zero: a rate is not tuned to its decay.
        decaying = schedules.wsd(
            rate, total_steps=task.steps, decay_steps=task.steps // 2
        )
        tx = optax.with_extra_args_support(method.build(decaying, **settings))
        params = task.start(seed)

        def some(carry, first):
            at = first + jnp.arange(task.every)
            advance = functools.partial(step, tx, seed)
            carry, _ = jax.lax.scan(advance, carry, at)
            return carry, task.valid(carry[0])

        begin = jnp.arange(0, task.steps, task.every)
        return jax.lax.scan(some, (params, tx.init(params)), begin)[1]

    return lambda rate, seed: np.asarray(run(rate, seed), np.float64)


def losses_of(run: Callable[[float, int], np.ndarray], rates: list[float]):
    """Returns the mean final loss at each rate; infinite if one diverged."""
    ends = {
        rate: float(np.mean([run(rate, seed)[-1] for seed in SWEEP_SEEDS]))
        for rate in rates
    }
    return {rate: end if np.isfinite(end) else np.inf for rate, end in ends.items()}


def measure(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """Tunes and runs every method of some pairs."""
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        make, methods = PAIRS[pair]
        task, found[pair] = make(), {}
        for name, method in methods.items():
            tried = []
            for settings in method.settings:
                run = runner(task, method, settings)
                sweep = grids.tune(functools.partial(losses_of, run), method.rates)
                rate = min(sweep, key=sweep.__getitem__)
                tried.append((sweep[rate], rate, settings, run, sweep))
            _, rate, settings, run, _ = min(tried, key=lambda row: row[0])
            found[pair][name] = {
                "rate": rate,
                "settings": settings,
                "sweeps": [
                    {**row[2], "losses": {f"{k:g}": row[4][k] for k in sorted(row[4])}}
                    for row in tried
                ],
                "every": task.every,
                "losses": [run(rate, seed).tolist() for seed in SEEDS],
            }
            print(f"{pair}: {name} done", flush=True)
    return found


def report(found: dict[str, dict[str, Any]]) -> str:
    """Writes the table: the first method of a pair is the baseline."""
    lines = [
        "| task | method | settings | rate | final loss | steps to the first's | |",
        "| --- | --- | --- | ---: | --- | ---: | ---: |",
    ]
    for pair, methods in found.items():
        baseline = next(iter(methods.values()))["losses"]
        target = statistics.mean(curve[-1] for curve in baseline)
        for name, cell in methods.items():
            finals = [curve[-1] for curve in cell["losses"]]
            mean = np.mean(cell["losses"], axis=0)
            reached = np.flatnonzero(mean <= target)
            steps = (int(reached[0]) + 1) * cell["every"] if reached.size else None
            share = (
                f"{steps} | {steps / (mean.size * cell['every']):.0%}" if steps else ""
            )
            settings = ", ".join(f"{k}={v}" for k, v in cell["settings"].items())
            lines.append(
                f"| {pair} | {name} | {settings} | {cell['rate']:g} |"
                f" {statistics.mean(finals):.4f} ± {statistics.stdev(finals):.4f} |"
                f" {share or 'never |'} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Runs all and writes the numbers, or prints what there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", action="store_true", help="print the table only")
    parser.add_argument("--tasks", nargs="+", default=list(PAIRS), choices=PAIRS)
    flags = parser.parse_args()
    if not flags.report:
        known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        found = known | measure(flags.tasks)
        RECORD.write_text(json.dumps(found, indent=1) + "\n")
    print(report(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
