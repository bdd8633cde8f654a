"""What a step of the Kronecker methods costs, with a refresh and without.

    python benchmarks/kronecker.py

Counts come from compiled programs and do not depend on the machine's load. Times do, so
all steps are timed in turns within one run; only ratios within that run are meant.
"""

import argparse
import dataclasses
import functools
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import catalog, kernels, optimizers, testing, trees

EVERY = 10


def every_tenth(count: jax.Array) -> jax.Array:
    """Refreshes with certainty at every tenth step and never between."""
    return jnp.where(count % EVERY == 0, 1.0, 0.0)


NEWTON = functools.partial(kernels.newton_inverse_root, relative=True)
CHAINS = {
    "soap": lambda: optimizers.scale_by_soap(every=EVERY),
    "shampoo": lambda: optimizers.scale_by_shampoo(every=EVERY),
    "shampoo, newton": lambda: optimizers.scale_by_shampoo(
        every=EVERY, eps=1e-6, root=NEWTON
    ),
    "psgd_kron": lambda: optimizers.scale_by_psgd_kron(probability=every_tenth),
    "mkor": lambda: optimizers.scale_by_mkor(every=EVERY),
}
APART = ("soap", "shampoo", "psgd_kron")  # compared with a transformation for each leaf
# Counts at which a step refreshes and at which it does not: SOAP and MKOR count the
# steps before this one, Shampoo this one too.
REFRESH = {"soap": 2 * EVERY, "mkor": 2 * EVERY, "psgd_kron": 2 * EVERY}
LAPACK = r'custom_call_target="lapack_\w+(?:syevd|geqrf|trsm)_ffi"'


def transformer(layers: int, d: int) -> dict:
    """A transformer's matrices: query, key and value fused, out, up, down."""
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    random = np.random.default_rng(0)
    return {
        f"layer_{i}": {
            name: {"kernel": jnp.asarray(random.normal(size=shape), jnp.float32)}
            for name, shape in shapes.items()
        }
        for i in range(layers)
    }


def for_each_leaf(make: Callable[[], Any], params: Any) -> Any:
    """A transformation of its own for every leaf, as a method without stacks has."""
    names = jax.tree.map_with_path(lambda path, _: trees.path_string(path), params)
    chains = {name: make() for name in jax.tree.leaves(names)}
    return optax.partition(chains, names)


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled update, its state and what else it is called with."""

    run: Any
    state: Any
    grads: Any
    seconds: float

    def at(self, count: int) -> "Step":
        """The same step as if `count` steps had been taken."""

        def set_count(x: Any) -> Any:
            counts = x.ndim == 0 and x.dtype == jnp.int32
            return jnp.full_like(x, count) if counts else x

        return dataclasses.replace(self, state=jax.tree.map(set_count, self.state))

    def milliseconds(self) -> float:
        """Wall time of one call."""
        start = time.perf_counter()
        jax.block_until_ready(self.run(self.grads, self.state))
        return 1e3 * (time.perf_counter() - start)

    def outside(self, pattern: str) -> int:
        """Counts matches in what runs at every step: not inside a conditional."""
        return len(re.findall(pattern, always(self.run.as_text() or "")))

    def count(self, pattern: str) -> int:
        """Counts matches in the whole program."""
        return len(re.findall(pattern, self.run.as_text() or ""))


def always(text: str) -> str:
    """Returns the computations that the entry reaches other than by a conditional."""
    bodies = {
        found[2]: (bool(found[1]), found[0])
        for found in re.finditer(r"^(ENTRY )?%?([\w.\-]+) .*?^}", text, re.M | re.S)
    }
    waiting = [name for name, (entry, _) in bodies.items() if entry]
    reached: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in reached or name not in bodies:
            continue
        lines = bodies[name][1].splitlines()
        kept = [line for line in lines if " conditional(" not in line]
        reached[name] = "\n".join(lines)
        for line in kept:
            waiting += re.findall(
                r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)", line
            )
    return "\n".join(reached.values())


def compiled(tx: Any, params: Any, extra: dict[str, Any], copies: int = 0) -> Step:
    """Compiles one update; with copies, mapped over that many states by jax.vmap."""

    def update(grads: Any, state: Any) -> Any:
        return tx.update(grads, state, params, **extra)

    state, grads, mapped = tx.init(params), params, update
    if copies:
        state, grads = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (copies, *x.shape)), (state, grads)
        )
        mapped = jax.vmap(update)
    start = time.perf_counter()
    run = jax.jit(mapped).lower(grads, state).compile()
    return Step(run, state, grads, time.perf_counter() - start)


def measure(name: str, layers: int, d: int, repeats: int) -> list[str]:
    """Returns the table's lines of one method."""
    params = transformer(layers, d)
    row = catalog.get(name.split(",")[0])
    subject = testing.Subject(row)
    extra = subject.extra_args(params, params, optax.tree.norm) if row.needs else {}
    stacked = compiled(CHAINS[name](), params, extra)
    steps = {"by shape": stacked}
    if name in APART:
        apart = for_each_leaf(CHAINS[name], params)
        steps["per leaf"] = compiled(apart, params, extra)
    due = REFRESH.get(name, 2 * EVERY - 1)
    turns = {
        (how, when): step.at(due + offset)
        for how, step in steps.items()
        for when, offset in (("refresh", 0), ("other", 3))
    }
    times = {key: [] for key in turns}
    for turn in range(repeats + 1):
        for key, step in turns.items():
            spent = step.milliseconds()
            if turn:  # the first turn warms up
                times[key].append(spent)
    lines = []
    for how, step in steps.items():
        refresh, other = (
            statistics.median(times[how, when]) for when in ("refresh", "other")
        )
        mean = (refresh + (EVERY - 1) * other) / EVERY
        lines.append(
            f"| {name}, {how} | {step.count(' conditional[(]')} | {step.count(LAPACK)}"
            f" | {step.outside(LAPACK)} | {step.seconds:.1f} | {refresh:.1f}"
            f" | {other:.1f} | {mean:.1f} |"
        )
    return lines


def under_vmap(name: str, repeats: int) -> str:
    """Returns what jax.vmap over states makes of the conditional."""
    params = transformer(1, 16)
    step = compiled(CHAINS[name](), params, {}, copies=2)
    plain = compiled(CHAINS[name](), params, {})
    times = {key: [] for key in ("plain", "mapped")}
    for _ in range(repeats + 1):
        times["plain"].append(plain.at(3).milliseconds())
        times["mapped"].append(step.milliseconds())
    ratio = statistics.median(times["mapped"][1:]) / statistics.median(
        times["plain"][1:]
    )
    return (
        f"{name} under jax.vmap over two states: {step.count(' conditional[(]')}"
        f" conditionals, {step.outside(LAPACK)} decompositions at every step,"
        f" {ratio:.0f} times the time of one state's other steps"
    )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    print(
        "| method | conditionals | decompositions, solves | of them at every step"
        f" | compile, s | refresh, ms | other step, ms | mean of {EVERY}, ms |"
    )
    print("| --- " * 8 + "|")
    for name in CHAINS:
        for line in measure(name, given.layers, given.d, given.repeats):
            print(line, flush=True)
    print()
    for name in APART:
        print(under_vmap(name, given.repeats), flush=True)


if __name__ == "__main__":
    main()
