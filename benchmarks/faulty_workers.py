"""Eight workers of whom two fail: what each rule makes of it, and what it costs.

`private_and_robust.py` runs it and prints its tables.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import flat_minima
import grids
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from optlab import aggregation

SWEEP_SEEDS, SEEDS = (0, 4, 5), (1, 2, 3)
WORKERS, FAULTY = 8, (2, 6)
F = len(FAULTY)
FAULTS = ("honest", "flip", "flip, 8 x", "stale", "stale, 8 x", "NaN")
STEPS, BATCH, KEPT, WIDTH = 200, 25, 20, 16
CASES = (("alike", 0.99), ("unlike", 0.99))


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images (n, 64) of a mean of 0 and a variance of 1, and labels, in three parts."""

    train: tuple[jax.Array, jax.Array]
    valid: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


@functools.cache
def digits() -> Digits:
    """Shuffles the digits: 1200 for training, 237 to choose rates, 360 to test."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = jnp.asarray((pixels - pixels.mean()) / pixels.std(), jnp.float32)[order]
    y = jnp.asarray(labels)[order]
    parts = (slice(0, 1200), slice(1200, 1437), slice(1437, None))
    return Digits(*((x[part], y[part]) for part in parts))


def begin(key: jax.Array) -> list[dict[str, jax.Array]]:
    """Makes two dense layers with LeCun's scale."""
    sizes = ((64, WIDTH), (WIDTH, 10))
    return [
        {"kernel": jax.random.normal(k, (m, n)) / m**0.5, "bias": jnp.zeros(n)}
        for k, (m, n) in zip(jax.random.split(key), sizes, strict=True)
    ]


def shards(alike: bool) -> tuple[jax.Array, jax.Array]:
    """Gives each worker 150 images: any, or of labels of its own liking.

    Unlike workers draw with probabilities of the ten labels from a Dirichlet of 1.
    """
    x, y = digits().train
    random = np.random.default_rng(1)
    if alike:
        rows = random.permutation(len(y)).reshape(WORKERS, -1)
        return x[rows], y[rows]
    liking = random.dirichlet(np.ones(10), WORKERS) / np.bincount(y)
    chances = liking[:, np.asarray(y)]
    rows = [
        random.choice(len(y), len(y) // WORKERS, p=p / p.sum(), replace=True)
        for p in chances
    ]
    return x[np.array(rows)], y[np.array(rows)]


def mean(stacked: Any) -> Any:
    return jax.tree.map(lambda x: x.mean(0), stacked)


def mean_for_each(stacked: Any) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x.mean(0), x.shape), stacked)


def nearest(stacked: Any) -> Any:
    pivot = aggregation.coordinate_median(stacked)
    return aggregation.nearest_neighbor_mean(pivot, stacked, F)


def mixed(stacked: Any) -> Any:
    return aggregation.mix_nearest_neighbors(stacked, F)


@dataclasses.dataclass(frozen=True)
class Rule:
    """From what eight have sent to what is made of it.

    A server makes one move of their momenta; peers, each of whom has parameters of its
    own, make new parameters of those of all.
    """

    rule: Callable[[Any], Any]
    peers: bool = False


RULES = {
    "mean": Rule(mean),
    "coordinate median": Rule(aggregation.coordinate_median),
    "trimmed mean": Rule(functools.partial(aggregation.trimmed_mean, faulty=F)),
    "Krum": Rule(functools.partial(aggregation.krum, faulty=F)),
    "Krum, 6 selected": Rule(
        functools.partial(aggregation.krum, faulty=F, select=WORKERS - F)
    ),
    "nearest to the median": Rule(nearest),
    "peers: mean": Rule(mean_for_each, peers=True),
    "peers: MoNNA": Rule(mixed, peers=True),
}


def spoiled(honest: Any, kept: Any, t: jax.Array, fault: jax.Array) -> tuple[Any, Any]:
    """Replaces what two workers send; returns that, and what the stale ones keep."""
    lies = jnp.zeros(WORKERS, bool).at[jnp.array(FAULTY)].set(True)
    kept = jax.tree.map(lambda x, old: jnp.where(t <= KEPT, x, old), honest, kept)

    def leaf(x: jax.Array, old: jax.Array) -> jax.Array:
        told = (x, -x, -8 * x, old, 8 * old, jnp.full_like(x, jnp.nan))
        lie = jax.lax.select_n(fault, *told)
        return jnp.where(lies.reshape(-1, *(1,) * (x.ndim - 1)), lie, x)

    return jax.tree.map(leaf, honest, kept), kept


def together(
    rule: Rule, momentum: float, data: Any, rate: Any, fault: Any, seed: Any
) -> Any:
    """Trains eight workers; returns the parameters of each."""
    start_key, batch_key = jax.random.split(jax.random.key(seed))
    start = begin(start_key)
    everywhere = jax.tree.map(lambda p: jnp.stack([p] * WORKERS), start)
    slow = optax.ema(momentum, debias=False)
    x, y = data

    def gradient(params: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        rows = jax.random.randint(key, (BATCH,), 0, len(y))
        return jax.grad(flat_minima.loss)(params, x[rows], y[rows])

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        params, state, kept = carry
        keys = jax.random.split(jax.random.fold_in(batch_key, t), WORKERS)
        grads = jax.vmap(gradient)(params, keys, x, y)
        slower, state = jax.vmap(slow.update)(grads, state)
        now = rate / (t // 50 + 1)  # the schedule of MoNNA's authors
        ahead = jax.tree.map(lambda p, m: p - now * m, params, slower)
        sent, kept = spoiled(ahead if rule.peers else slower, kept, t, fault)
        made = rule.rule(sent)
        if not rule.peers:
            made = jax.tree.map(lambda p, m: p - now * m, params, made)
        return (made, state, kept), None

    carry = (everywhere, jax.vmap(slow.init)(everywhere), everywhere)
    return jax.lax.scan(step, carry, jnp.arange(STEPS))[0][0]


def scores(params: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
    """Returns cross entropy and accuracy."""
    x, y = part
    right = flat_minima.network(params, x).argmax(-1) == y
    return flat_minima.loss(params, x, y), jnp.mean(right)


def tune(loss_at: Callable[[float], Any], first: tuple[float, ...]) -> float:
    """Returns the rate of the least mean loss of the sweep's seeds."""

    def losses_at(rates: list[float]) -> dict[float, float]:
        means = {rate: float(np.mean(loss_at(rate))) for rate in rates}
        return {rate: m if math.isfinite(m) else math.inf for rate, m in means.items()}

    losses = grids.tune(losses_at, first)
    return min(losses, key=losses.__getitem__)


def measured(rule: Rule, momentum: float, data: Any) -> dict[str, Any]:
    """Tunes the rate of a rule with honest workers; measures it with faulty ones."""
    honest = jnp.array([i for i in range(WORKERS) if i not in FAULTY])

    def run(rate: Any, fault: Any, seed: Any) -> tuple[jax.Array, jax.Array]:
        params = together(rule, momentum, data, rate, fault, seed)
        each = jax.vmap(scores, (0, None))
        ours = jax.tree.map(lambda x: x[honest], params)
        loss, right = each(ours, digits().valid)[0], each(ours, digits().test)[1]
        return loss.mean(), right.mean()

    many = jax.jit(jax.vmap(run, (None, None, 0)))
    rate = tune(lambda rate: many(rate, 0, jnp.array(SWEEP_SEEDS))[0], (0.25, 0.5, 1.0))
    accuracy = {
        fault: np.asarray(many(rate, i, jnp.array(SEEDS))[1]).tolist()
        for i, fault in enumerate(FAULTS)
    }
    return {"rate": rate, "accuracy": accuracy}


def robust() -> dict[str, Any]:
    """Tunes and measures every rule in every case."""
    found = {}
    for kind, momentum in CASES:
        data = shards(kind == "alike")
        for name, rule in RULES.items():
            row = measured(rule, momentum, data)
            found[f"{kind}, {momentum}, {name}"] = row
            print(kind, momentum, name, row, flush=True)
    return found


def costs(turns: int = 5) -> dict[str, dict[str, float]]:
    """Counts and times each rule on eight trees of 0.8 million entries."""
    shapes = {"in": (256, 1024), "out": (1024, 256), "head": (256, 1024), "bias": 1024}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    stacked = {
        name: jax.random.normal(key, (WORKERS, *np.atleast_1d(shape)))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    programs = {
        name: jax.jit(rule.rule).lower(stacked).compile()
        for name, rule in RULES.items()
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(turns + 1):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(stacked))
            if turn:
                times[name].append(time.perf_counter() - begin)
    found = {}
    for name, program in programs.items():
        counted: Any = program.cost_analysis()
        found[name] = {
            "flops": counted["flops"],
            "bytes": counted["bytes accessed"],
            "seconds": statistics.median(times[name]),
        }
    return found
