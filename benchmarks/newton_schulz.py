"""Muon's step beside Optax's: FLOPs, memory and program size from the compiled program.

    python benchmarks/newton_schulz.py

Counts do not depend on the machine's load. Times do, so the two steps are timed in
turns within one run and compared as a ratio of medians.
"""

import re
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from optlab import optimizers

REPEATS = 15


def transformer(layers: int, d: int) -> dict:
    """Matrices of a transformer: query, key and value fused, out, up and down."""
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    key = jax.random.key(0)
    return {
        f"layer_{i}": {
            name: {"kernel": jax.random.normal(jax.random.fold_in(key, i), shape)}
            for name, shape in shapes.items()
        }
        for i in range(layers)
    }


def compiled(tx: optax.GradientTransformation, params: dict):
    """Compiles update and application, with parameters and state donated."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    return lowered.compile(), time.perf_counter() - start


def count(program, size: int) -> dict[str, float]:
    """Reads the compiled program; memory is relative to the parameters."""
    text = program.as_text()
    return {
        "GFLOP": program.cost_analysis()["flops"] / 1e9,
        "temporary memory / parameters": (
            program.memory_analysis().temp_size_in_bytes / (4 * size)
        ),
        "program, KB": len(text) / 1e3,
        "products": len(re.findall(r"= \S+ dot\(|custom-call\(.*matmul", text)),
    }


def interleaved(steps: dict, params: dict) -> dict[str, float]:
    """Times the steps in turns; returns the median seconds of each."""
    grads = jax.tree.map(jnp.ones_like, params)
    carry, seconds = {}, {name: [] for name in steps}
    for name, (tx, _) in steps.items():
        own = jax.tree.map(jnp.copy, params)
        carry[name] = (own, tx.init(own))
    for _ in range(REPEATS):
        for name, (_, program) in steps.items():
            start = time.perf_counter()
            carry[name] = jax.block_until_ready(program(*carry[name], grads))
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def main() -> None:
    """Prints one table for each tree of parameters."""
    trees = {
        "one matrix, 256 x 1024": {"up": {"kernel": jnp.ones((256, 1024))}},
        "12 layers, d = 256": transformer(12, 256),
    }
    for title, params in trees.items():
        size = sum(x.size for x in jax.tree.leaves(params))
        chains = {
            "optlab": optimizers.muon(0.02),
            "optax": optax.contrib.muon(0.02),
        }
        programs, rows = {}, {}
        for name, tx in chains.items():
            program, seconds = compiled(tx, params)
            programs[name] = (tx, program)
            rows[name] = {**count(program, size), "compile, s": seconds}
        for name, seconds in interleaved(programs, params).items():
            rows[name]["step, ms"] = 1e3 * seconds
        print(f"\n{title} (jax {jax.__version__}, optax {optax.__version__})\n")
        print("| | optlab | optax | ratio |\n| --- | --- | --- | --- |")
        for key, ours in rows["optlab"].items():
            theirs = rows["optax"][key]
            ratio = f"{ours / theirs:.2f}" if theirs else "-"
            print(f"| {key} | {ours:.4g} | {theirs:.4g} | {ratio} |")


if __name__ == "__main__":
    main()
