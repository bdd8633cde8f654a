"""Workers of whom two fail, and gradients that keep examples private, on the digits.

    pip install 'optlab-jax[privacy]'
    python benchmarks/private_and_robust.py

Eight simulated workers train one network; two of them flip signs, send what is out of
date or no numbers at all. Each rule that makes one of what eight have sent has its rate
from a grid, in factors of two, that is extended until the best lies inside, by the mean
validation loss of three seeds while all are honest; accuracies are of three others, on
test images. Private runs have theirs in the same way, for each noise. Memory is that of
compiled programs, noise is measured beside what is stated. Tables are printed, and
numbers written to `benchmarks/private_and_robust.json`; `--report` prints them from
there.
"""

import argparse
import json
import math
import pathlib
import statistics
from typing import Any

import faulty_workers
import flat_minima
import jax
import jax.numpy as jnp
import numpy as np
import optax
from faulty_workers import FAULTS, SEEDS, SWEEP_SEEDS, digits, scores, tune
from scipy import stats

from optlab import estimators, optimizers

RECORD = pathlib.Path(__file__).with_suffix(".json")
SIGMAS = (0.7, 1.0, 2.0, 4.0, 8.0)
STEPS, SAMPLING_RATE, DELTA = 150, 0.1, 1e-4
CLIPS = (0.5, 2.0, 8.0)
MICROBATCH, BATCHES = 64, (64, 128, 256, 512, 1024, 2048, 4096)


def example_loss(params: Any, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross entropy of one image."""
    x, y = example
    return flat_minima.loss(params, x[None], y[None])


def clipped_all_at_once(params: Any, batch: Any) -> Any:
    """Holds every gradient before it is clipped, as a plain `jax.vmap` does."""
    grads = jax.vmap(jax.grad(example_loss), (None, 0))(params, batch)
    norms = jax.vmap(optax.tree.norm)(grads)
    factors = jnp.minimum(1, 1 / norms)
    return jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)


def clipped_by_optax(params: Any, batch: Any) -> Any:
    def clipped(grads: Any) -> Any:
        factor = jnp.minimum(1, 1 / optax.tree.norm(grads))
        return jax.tree.map(lambda g: factor * g, grads)

    call = optax.microbatching.micro_grad(
        example_loss,
        keep_batch_dim=False,
        microbatch_size=MICROBATCH,
        transform_fn=clipped,
    )
    return call(params, batch)[0]


def clipped_by_optlab(params: Any, batch: Any) -> Any:
    size = min(MICROBATCH, len(batch[1]))
    return estimators.clipped_gradient_sum(
        example_loss, params, batch, clip=1.0, microbatch_size=size
    ).grads


def memory() -> dict[str, Any]:
    """Reads the temporary bytes of compiled sums over batches of many sizes."""
    params = jax.eval_shape(flat_minima.start, jax.random.key(0))
    ways = {
        "vmap": clipped_all_at_once,
        "optax": clipped_by_optax,
        "optlab": clipped_by_optlab,
    }
    found: dict[str, dict[str, int]] = {name: {} for name in ways}
    for size in BATCHES:
        batch = (
            jax.ShapeDtypeStruct((size, 64), jnp.float32),
            jax.ShapeDtypeStruct((size,), jnp.int32),
        )
        for name, way in ways.items():
            compiled: Any = jax.jit(way).lower(params, batch).compile()
            used = compiled.memory_analysis().temp_size_in_bytes
            found[name][str(size)] = used
    gradient = 4 * sum(p.size for p in jax.tree.leaves(params))
    return {**found, "gradient": gradient}


def noise(draws: int = 120) -> list[dict[str, float]]:
    """Measures what private gradients have beside the silent ones, in units of sigma.

    All parameters, many keys; the test is Kolmogorov's, against a standard normal.
    """
    x, y = digits().train
    batch, params = (x[:256], y[:256]), flat_minima.start(jax.random.key(0))

    def whole(key: jax.Array, sigma: Any, clip: Any) -> jax.Array:
        found = estimators.private_gradient(
            example_loss,
            params,
            batch,
            key,
            clip=clip,
            noise_multiplier=sigma,
            batch_size=256,
            microbatch_size=MICROBATCH,
        )
        return jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(found.grads)])

    @jax.jit
    def units(key: jax.Array, sigma: Any, clip: Any) -> jax.Array:
        silent = whole(key, 0.0, clip)
        keys = jax.random.split(key, draws)
        loud = jax.lax.map(lambda key: whole(key, sigma, clip), keys)
        return (loud - silent) * 256 / (sigma * clip)

    found = []
    for i, (sigma, clip) in enumerate(((0.5, 1.0), (1.0, 1.0), (4.0, 0.25), (1.0, 8))):
        got = np.asarray(units(jax.random.key(i), sigma, clip), np.float64).ravel()
        found.append(
            {
                "sigma": sigma,
                "clip": clip,
                "entries": got.size,
                "mean": got.mean(),
                "deviation": got.std(),
                "chance": float(stats.kstest(got, "norm").pvalue),
            }
        )
    return found


def private_run(clip: Any, rate: Any, sigma: Any, seed: Any) -> tuple[Any, ...]:
    """Trains with private gradients; returns scores and the largest draw."""
    x, y = digits().train
    expected = SAMPLING_RATE * len(y)
    capacity = math.ceil(expected + 10 * expected**0.5)
    start_key, run_key = jax.random.split(jax.random.key(seed))
    schedule = optax.cosine_decay_schedule(rate, STEPS)
    tx = optimizers.sgd(schedule, momentum=0.9)

    def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        who, how = jax.random.split(jax.random.fold_in(run_key, t))
        batch = estimators.poisson_batch(
            who, len(y), sampling_rate=SAMPLING_RATE, capacity=capacity
        )
        found = estimators.private_gradient(
            example_loss,
            params,
            (x[batch.indices], y[batch.indices]),
            how,
            clip=clip,
            noise_multiplier=sigma,
            batch_size=expected,
            valid=batch.valid,
        )
        updates, state = tx.update(found.grads, state, params)
        return (optax.apply_updates(params, updates), state), batch.drawn

    params = faulty_workers.begin(start_key)
    (params, _), drawn = jax.lax.scan(
        step, (params, tx.init(params)), jnp.arange(STEPS)
    )
    right = scores(params, digits().test)[1]
    return scores(params, digits().valid)[0], right, drawn.max()


def private() -> list[dict[str, Any]]:
    """Tunes and measures runs without clip or noise, without noise, and with it."""
    many = jax.jit(jax.vmap(private_run, (None, None, None, 0)))
    found = []
    for sigma, clips in ((0.0, (math.inf,)), *((s, CLIPS) for s in (0.0, *SIGMAS))):
        best: tuple[float, float, float] | None = None
        for clip in clips:

            def loss_at(rate: float, clip=clip, sigma=sigma) -> Any:
                return many(clip, rate, sigma, jnp.array(SWEEP_SEEDS))[0]

            # A step is as long as what is clipped, so rates go with its inverse.
            first = 0.1 / min(clip, 1.0)
            rate = tune(loss_at, (first / 2, first, 2 * first))
            loss = float(loss_at(rate).mean())
            best = min(best or (math.inf, rate, clip), (loss, rate, clip))
        assert best is not None
        _, rate, clip = best
        _, accuracy, drawn = many(clip, rate, sigma, jnp.array(SEEDS))
        spent = math.inf
        if sigma:
            spent = estimators.privacy_spent(
                sigma, sampling_rate=SAMPLING_RATE, steps=STEPS, delta=DELTA
            )
        found.append(
            {
                "sigma": sigma,
                "clip": str(clip),
                "epsilon": str(spent),
                "rate": rate,
                "accuracy": np.asarray(accuracy).tolist(),
                "largest draw": int(drawn.max()),
            }
        )
        print(found[-1], flush=True)
    return found


def spread(values: list[float]) -> str:
    """Writes a share as mean and deviation, in percent."""
    percent = [100 * v for v in values]
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Writes a table whose first column is text and whose others are numbers."""
    rules = ("---", *("---:",) * (len(head) - 1))
    return [f"| {' | '.join(row)} |" for row in (head, rules, *rows)] + [""]


def robust_tables(record: dict[str, Any]) -> list[str]:
    """Writes the accuracies with faulty workers, and what the rules cost."""
    lines: list[str] = []
    for kind, momentum in faulty_workers.CASES:
        rows = []
        for name in faulty_workers.RULES:
            row = record["robust"][f"{kind}, {momentum}, {name}"]
            shares = (spread(row["accuracy"][fault]) for fault in FAULTS)
            rows.append((name, f"{row['rate']:g}", *shares))
        lines += [f"Images {kind}, momentum {momentum}:", ""]
        lines += table(("rule", "rate", *FAULTS), rows)
    mean = record["costs"]["mean"]
    rows = [
        (name, *(f"{row[x] / mean[x]:.1f}" for x in ("flops", "bytes", "seconds")))
        for name, row in record["costs"].items()
    ]
    return lines + table(("rule / mean", "FLOP", "bytes", "time"), rows)


def private_tables(record: dict[str, Any]) -> list[str]:
    """Writes memory, noise, and accuracies for each epsilon."""
    gradient = record["memory"]["gradient"]
    rows = [
        (name, *(f"{record['memory'][name][str(b)] / gradient:.0f}" for b in BATCHES))
        for name in ("vmap", "optax", "optlab")
    ]
    lines = table(("batch", *map(str, BATCHES)), rows)
    rows = [
        (
            f"{row['sigma']:g}",
            f"{row['clip']:g}",
            f"{row['mean']:+.4f}",
            f"{row['deviation']:.4f}",
            f"{row['chance']:.2f}",
        )
        for row in record["noise"]
    ]
    lines += table(("sigma", "C", "mean", "deviation", "chance"), rows)
    rows = [
        (
            f"{float(row['epsilon']):.2f}",
            f"{row['sigma']:g}",
            row["clip"],
            f"{row['rate']:g}",
            spread(row["accuracy"]),
        )
        for row in record["private"]
    ]
    return lines + table(("epsilon", "sigma", "C", "rate", "accuracy, %"), rows)


def report(record: dict[str, Any]) -> str:
    """Writes all tables."""
    return "\n".join([*robust_tables(record), *private_tables(record)])


def main() -> None:
    """Runs everything, unless the record is only to be printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="print the record")
    if not parser.parse_args().report:
        parts = {
            "robust": faulty_workers.robust,
            "costs": faulty_workers.costs,
            "memory": memory,
            "noise": noise,
            "private": private,
        }
        record = {name: measure() for name, measure in parts.items()}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(report(json.loads(RECORD.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
