"""Muon's step beside Optax's: time, memory and program size of a transformer's tree.

    python benchmarks/muon_step.py

Counts come from compiled programs and do not depend on the machine's load. Times do, so
all steps are timed in turns within one run and compared turn by turn.
"""

import argparse
import dataclasses
import functools
import re
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, optimizers

LAYERS, DEEP = 12, 96
OPTAX = "optax"
MIXED = functools.partial(kernels.newton_schulz, compute_dtype="bfloat16")
ACCURATE = functools.partial(kernels.newton_schulz, coefficients="accurate")
CHAINS = {
    OPTAX: optax.contrib.muon(0.02),
    "optlab": optimizers.muon(0.02),
    "mixed": optimizers.muon(0.02, orthogonalize=MIXED),
    "accurate": optimizers.muon(0.02, orthogonalize=ACCURATE),
}


def transformer(layers: int, d: int) -> dict:
    """Shapes of a transformer's matrices: query, key and value fused, out, up, down."""
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    return {
        f"layer_{i}": {
            name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
            for name, shape in shapes.items()
        }
        for i in range(layers)
    }


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled update with its application; parameters and state are donated."""

    run: jax.stages.Compiled
    seconds: float

    @property
    def kilobytes(self) -> float:
        """Size of the program's text."""
        return len(self.run.as_text() or "") / 1e3

    @property
    def products(self) -> int:
        """Matrix products in it."""
        return len(re.findall(r"= \S+ dot\(", self.run.as_text() or ""))

    @property
    def temporary(self) -> int:
        """Bytes of memory beside arguments and results."""
        used = self.run.memory_analysis()
        return used.temp_size_in_bytes if used else 0


def compiled(tx: optax.GradientTransformation, params: dict) -> Program:
    """Compiles one step."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    start = time.perf_counter()
    run = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return Program(run, time.perf_counter() - start)


def flops(params: dict, **settings) -> float:
    """FLOPs of Newton-Schulz on all matrices, by the plan that is followed.

    A compiled loop counts its body once, so the program would tell too little.
    """
    return sum(
        kernels.polar_plan(leaf.shape, **settings).flops
        for leaf in jax.tree.leaves(params)
    )


def interleaved(programs: dict[str, Program], params: dict, turns: int) -> dict:
    """Times the steps in turns; returns the seconds of each turn but the first."""
    draw = iter(jax.random.split(jax.random.key(0), 10_000))
    grads = jax.tree.map(lambda x: jax.random.normal(next(draw), x.shape), params)
    carry, seconds = {}, {name: [] for name in programs}
    for name in programs:
        own = jax.tree.map(jnp.copy, grads)
        carry[name] = (own, CHAINS[name].init(own))
    for _ in range(turns + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            carry[name] = jax.block_until_ready(program.run(*carry[name], grads))
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def measure(d: int, turns: int) -> dict[str, dict[str, float]]:
    """Returns, for each chain, what a line of the table is called and its number."""
    params = transformer(LAYERS, d)
    size = 4 * sum(x.size for x in jax.tree.leaves(params))
    programs = {name: compiled(tx, params) for name, tx in CHAINS.items()}
    deeper = {
        name: compiled(tx, transformer(2 * LAYERS, d)) for name, tx in CHAINS.items()
    }
    seconds = interleaved(programs, params, turns)
    plans = {
        OPTAX: {"form": "standard"},
        "optlab": {},
        "mixed": {"compute_dtype": "bfloat16"},
        "accurate": {"coefficients": "accurate"},
    }
    table = {}
    for name, program in programs.items():
        added = deeper[name].kilobytes - program.kilobytes
        ratios = [
            mine / theirs
            for mine, theirs in zip(seconds[name], seconds[OPTAX], strict=True)
        ]
        table[name] = {
            "GFLOP of Newton-Schulz": flops(params, **plans[name]) / 1e9,
            "temporary memory / parameters": program.temporary / size,
            "program, KB a layer more": added / LAYERS,
            f"products, {LAYERS} layers": program.products,
            f"products, {2 * LAYERS} layers": deeper[name].products,
            "step, ms": 1e3 * statistics.median(seconds[name]),
            "step / optax, median of turns": statistics.median(ratios),
            "step / optax, fastest turns": min(seconds[name]) / min(seconds[OPTAX]),
        }
    return table


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    """Prints a table in Markdown."""
    print(f"\n| {title} | {' | '.join(table)} |")
    print("| --- |" + " ---: |" * len(table), flush=True)
    for line in table[OPTAX]:
        cells = (f"{row[line]:.4g}" for row in table.values())
        print(f"| {line} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints one table for each width, and one for a deep model's compilation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=(256, 512))
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.default_backend()}")
    for d in arguments.widths:
        show(f"{LAYERS} layers, d = {d}", measure(d, arguments.turns))
    # Twice in turns, the faster: compilation is as noisy as the steps are.
    deep = {}
    for name in (*CHAINS, *CHAINS):
        program = compiled(CHAINS[name], transformer(DEEP, 256))
        if name not in deep or program.seconds < deep[name].seconds:
            deep[name] = program
    show(
        f"{DEEP} layers, d = 256",
        {
            name: {
                "compile, s": program.seconds,
                "compile / optax": program.seconds / deep[OPTAX].seconds,
                "program, KB a layer": program.kilobytes / DEEP,
                "products": program.products,
                "temporary memory / parameters": program.temporary
                / (4 * DEEP * 12 * 256**2),
            }
            for name, program in deep.items()
        },
    )


if __name__ == "__main__":
    main()
