"""Sharpness-aware training and TrAct layers against the plain ones, on the digits.

    python benchmarks/flat_minima.py

A network of two hidden layers learns 500 of the digits, and 60 epochs are more than it
needs: what counts is where it ends. Each method has three or four radii or weights,
and each of these a grid of rates in factors of two that is extended until its best
rate lies inside, by the mean validation loss of three seeds; then come six others.
TrAct is tuned in the same way, on most of the digits, for four lengths of a run. The
tables are printed, and numbers written to `benchmarks/flat_minima.json`; `--report`
prints them from there.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import grids
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import flatten_util
from sklearn import datasets

from optlab import estimators, kernels, optimizers

RECORD = pathlib.Path(__file__).with_suffix(".json")
SWEEP_SEEDS, SEEDS = (0, 4, 5), (1, 2, 3, 6, 7, 8)
WIDTH, EPOCHS, MOMENTUM = 64, 60, 0.9
LENGTHS = (50, 100, 200, 400)
RATES = (0.05, 0.1, 0.2)


@dataclasses.dataclass(frozen=True)
class Task:
    """Images of a mean of 0 and a variance of 1, shape (n, 64), and their labels."""

    train: tuple[jax.Array, jax.Array]
    valid: tuple[jax.Array, jax.Array]
    batch: int

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return len(self.train[1]) // self.batch


def task(images: int, batch: int) -> Task:
    """Shuffles the digits; the first ones are for training."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = jnp.asarray((pixels - pixels.mean()) / pixels.std(), jnp.float32)[order]
    y = jnp.asarray(labels)[order]
    return Task((x[:images], y[:images]), (x[images:], y[images:]), batch)


def start(key: jax.Array) -> list[dict[str, jax.Array]]:
    """Makes three dense layers with LeCun's scale."""
    sizes = ((64, WIDTH), (WIDTH, WIDTH), (WIDTH, 10))
    return [
        {"kernel": jax.random.normal(k, (m, n)) / m**0.5, "bias": jnp.zeros(n)}
        for k, (m, n) in zip(jax.random.split(key, 3), sizes, strict=True)
    ]


def network(params: Any, x: jax.Array, first: Callable = jnp.matmul) -> jax.Array:
    """Returns the logits; `first` multiplies in the first layer."""
    for i, layer in enumerate(params):
        multiply = jnp.matmul if i else first
        x = multiply(jax.nn.gelu(x) if i else x, layer["kernel"]) + layer["bias"]
    return x


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross entropy in nats."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(network(params, x), y)
    return entropy.mean()


@dataclasses.dataclass(frozen=True)
class Step:
    """What a method may use to find a gradient."""

    params: Any
    momentum: Any
    memory: Any
    ids: jax.Array
    batch: tuple[jax.Array, jax.Array]
    epoch: jax.Array
    key: jax.Array
    strength: jax.Array


def plain(s: Step) -> tuple[Any, Any]:
    return jax.grad(loss)(s.params, *s.batch), s.memory


def sharp(s: Step, **more: Any) -> tuple[Any, Any]:
    found = estimators.sharpness_aware_value_and_grad(
        loss, s.params, *s.batch, rho=s.strength, **more
    )
    return found.grads, s.memory


def beside(s: Step, perturb: Callable) -> tuple[Any, Any]:
    found = estimators.perturbed_value_and_grad(
        lambda p: loss(p, *s.batch), s.params, lambda p: perturb(s, p)
    )
    return found.grads, s.memory


def along_momentum(s: Step, params: Any) -> Any:
    return estimators.perturbation_along(s.momentum, s.strength)


def by_rows(s: Step, params: Any) -> Any:
    return estimators.perturbation_by_rows(s.key, params, s.strength)


def free(s: Step) -> tuple[Any, Any]:
    """The trajectory loss: outputs of three epochs ago, from a store."""
    x, y = s.batch
    past, known = estimators.recall(s.memory, s.ids, s.epoch)

    def whole(params: Any) -> tuple[jax.Array, jax.Array]:
        z = network(params, x)
        return estimators.saf_loss(z, past, y, weight=s.strength, known=known), z

    grads, z = jax.grad(whole, has_aux=True)(s.params)
    return grads, estimators.remember(s.memory, s.ids, z, s.epoch)


def taught(s: Step) -> tuple[Any, Any]:
    """The same loss with the outputs of an average of the weights."""
    x, y = s.batch
    # Its decay for runs of 600 steps; the published one is for many thousands.
    teacher = estimators.averaged_weights(s.memory, s.params, decay=0.99)
    past = network(teacher, x)

    def whole(params: Any) -> jax.Array:
        z = network(params, x)
        return estimators.saf_loss(z, past, y, weight=s.strength)

    return jax.grad(whole)(s.params), teacher


def buffer(data: Task, params: Any) -> Any:
    return estimators.trajectory_buffer(len(data.train[1]), 10)


def teacher(data: Task, params: Any) -> Any:
    return estimators.averaged_weights(None, params)


@dataclasses.dataclass(frozen=True)
class Method:
    """How a gradient is found, what is kept for it, and which strengths are tried."""

    gradient: Callable[[Step], tuple[Any, Any]]
    strengths: tuple[float, ...] = (0.0,)
    memory: Callable[[Task, Any], Any] = lambda data, params: ()
    gradients: int = 1


RADII = (0.1, 0.2, 0.4, 0.8)
METHODS = {
    "sgd": Method(plain),
    "sam": Method(sharp, RADII, gradients=2),
    "sam, 5 groups": Method(functools.partial(sharp, groups=5), RADII, gradients=2),
    "asam": Method(
        functools.partial(sharp, adaptive=True), (0.5, 1.0, 2.0, 4.0), gradients=2
    ),
    "along momentum": Method(functools.partial(beside, perturb=along_momentum), RADII),
    "noise by rows": Method(
        functools.partial(beside, perturb=by_rows), (0.1, 0.2, 0.4)
    ),
    "saf": Method(free, (0.3, 1.0, 3.0), buffer),
    "mesa": Method(taught, (0.3, 1.0, 3.0), teacher),
}


def walk(
    method: Method, data: Task, steps: int, rate: Any, strength: Any, seed: Any
) -> Any:
    """Trains; returns the parameters."""
    key = jax.random.key(seed)
    params = start(key)
    tx = optimizers.sgd(optax.cosine_decay_schedule(rate, steps), momentum=MOMENTUM)
    x, y = data.train

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        params, state, memory = carry
        epoch = t // data.epoch
        order = jax.random.permutation(jax.random.fold_in(key, epoch), len(y))
        at = t % data.epoch * data.batch
        ids = jax.lax.dynamic_slice_in_dim(order, at, data.batch)
        own = jax.random.fold_in(jax.random.fold_in(key, 1), t)
        momentum = state[0].trace
        s = Step(params, momentum, memory, ids, (x[ids], y[ids]), epoch, own, strength)
        grads, memory = method.gradient(s)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, memory), None

    begin = (params, tx.init(params), method.memory(data, params))
    return jax.lax.scan(step, begin, jnp.arange(steps))[0][0]


def ends(params: Any, data: Task) -> dict[str, jax.Array]:
    """Measures where a run has ended."""
    x, y = data.train
    flat, unravel = flatten_util.ravel_pytree(params)

    def product(v: jax.Array) -> jax.Array:
        turned = estimators.hessian_vector_product(
            lambda p: loss(p, x, y), params, unravel(v)
        )
        return flatten_util.ravel_pytree(turned)[0]

    first = jax.random.normal(jax.random.key(0), flat.shape)
    logits = network(params, data.valid[0])
    return {
        "train": loss(params, x, y),
        "valid": loss(params, *data.valid),
        "errors": jnp.mean(logits.argmax(-1) != data.valid[1]),
        "sharpness": kernels.power_iteration(product, first, steps=30)[0],
    }


def tuned(
    run: Callable[..., dict[str, jax.Array]], strengths: tuple[float, ...]
) -> dict[str, Any]:
    """Finds strength and rate by the sweep's seeds; measures with the others."""
    best: tuple[float, float, float] | None = None
    for strength in strengths:

        def losses_at(rates: list[float], strength: float = strength) -> dict:
            means = [
                float(run(r, strength, jnp.array(SWEEP_SEEDS))["valid"].mean())
                for r in rates
            ]
            return {
                r: m if np.isfinite(m) else np.inf
                for r, m in zip(rates, means, strict=True)
            }

        losses = grids.tune(losses_at, RATES)
        rate = min(losses, key=losses.__getitem__)
        if best is None or losses[rate] < best[0]:
            best = losses[rate], rate, strength
    assert best is not None
    _, rate, strength = best
    found = run(rate, strength, jnp.array(SEEDS))
    return {
        "rate": rate,
        "strength": strength,
        **{name: np.asarray(x).tolist() for name, x in found.items()},
    }


def runner(method: Method, data: Task, steps: int) -> Callable[..., Any]:
    """Compiles (rate, strength, seeds) -> measurements of each seed."""

    def run(rate: Any, strength: Any, seed: Any) -> dict[str, jax.Array]:
        return ends(walk(method, data, steps, rate, strength, seed), data)

    return jax.jit(jax.vmap(run, (None, None, 0)))


def seconds(data: Task, steps: int, turns: int = 7) -> dict[str, float]:
    """Times one seed of each method, all in turn; returns medians of a step's time."""
    runs = {
        name: jax.jit(functools.partial(walk, method, data, steps))
        for name, method in METHODS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(0.1, 0.1, 0))
            if turn:  # the first one compiles
                times[name].append((time.perf_counter() - begin) / steps)
    return {name: statistics.median(values) for name, values in times.items()}


def flops(data: Task) -> dict[str, float]:
    """Counts the operations of one step of each method's gradient."""
    counts = {}
    for name, method in METHODS.items():
        params = start(jax.random.key(0))
        batch = (data.train[0][: data.batch], data.train[1][: data.batch])

        def gradient(params, momentum, memory, batch, key, method=method):
            ids, epoch = jnp.arange(len(batch[1])), jnp.array(9)
            strength = jnp.array(0.1)
            s = Step(params, momentum, memory, ids, batch, epoch, key, strength)
            return method.gradient(s)

        memory = method.memory(data, params)
        args = (params, params, memory, batch, jax.random.key(1))
        cost: Any = jax.jit(gradient).lower(*args).compile().cost_analysis()
        counts[name] = cost["flops"]
    return counts


def minima() -> dict[str, Any]:
    """Tunes and measures every method."""
    data = task(500, 50)
    steps = EPOCHS * data.epoch
    found = {}
    for name, method in METHODS.items():
        found[name] = tuned(runner(method, data, steps), method.strengths)
        print(name, found[name]["rate"], found[name]["strength"], flush=True)
    counts, times = flops(data), seconds(data, steps)
    for name, row in found.items():
        row["flops"], row["seconds"] = counts[name], times[name]
    return found


def first_layers() -> dict[str, Any]:
    """Tunes and measures runs of four lengths, with and without TrAct."""
    data = task(1509, 64)

    def tract(s: Step) -> tuple[Any, Any]:
        def whole(params: Any) -> jax.Array:
            multiply = functools.partial(estimators.tract_dense, damping=s.strength)
            z = network(params, s.batch[0], multiply)
            entropy = optax.softmax_cross_entropy_with_integer_labels(z, s.batch[1])
            return entropy.mean()

        return jax.grad(whole)(s.params), s.memory

    found = {}
    for steps in LENGTHS:
        for name, method in (
            ("plain", Method(plain)),
            ("tract", Method(tract, (0.1, 1.0))),
        ):
            run = runner(method, data, steps)
            found[f"{name} {steps}"] = tuned(run, method.strengths)
            print(name, steps, flush=True)
    return found


def spread(values: list[float], digits: int, factor: float = 1.0) -> str:
    """Writes mean and standard deviation."""
    scaled = [factor * v for v in values]
    return (
        f"{statistics.mean(scaled):.{digits}f} ± {statistics.stdev(scaled):.{digits}f}"
    )


def report(record: dict[str, Any]) -> str:
    """Writes both tables."""
    base = record["minima"]["sgd"]
    lines = [
        "| method | gradients a step | rate | strength | training loss |"
        " validation loss | errors, % | largest eigenvalue | FLOP / sgd | ms a step |"
        " time / sgd |",
        "| --- |" + " ---: |" * 10,
    ]
    for name, row in record["minima"].items():
        cells = (
            name,
            str(METHODS[name].gradients),
            f"{row['rate']:g}",
            f"{row['strength']:g}" if row["strength"] else "",
            f"{statistics.mean(row['train']):.4f}",
            spread(row["valid"], 3),
            spread(row["errors"], 2, 100),
            spread(row["sharpness"], 2),
            f"{row['flops'] / base['flops']:.2f}",
            f"{1000 * row['seconds']:.2f}",
            f"{row['seconds'] / base['seconds']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| steps | plain | rate | TrAct | rate | damping |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for steps in LENGTHS:
        one, other = (record["tract"][f"{k} {steps}"] for k in ("plain", "tract"))
        lines.append(
            f"| {steps} | {spread(one['valid'], 3)} | {one['rate']:g} |"
            f" {spread(other['valid'], 3)} | {other['rate']:g} |"
            f" {other['strength']:g} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs everything, unless the record is only to be printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="print the record")
    if not parser.parse_args().report:
        record = {"minima": minima(), "tract": first_layers()}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(report(json.loads(RECORD.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
