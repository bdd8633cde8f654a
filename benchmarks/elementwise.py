"""Steps of the methods that work entry by entry, beside Optax's AdamW and a copy.

    python benchmarks/elementwise.py

A row for each optimizer and wrapper of the catalogue without matrix products, on one
large leaf and on many small ones: update and application in one program, parameters and
state donated. `must` are the bytes of what goes in and comes out: gradients, parameters
and state read once, parameters and state written once. `counted` are those of the
compiled program. It has more where a method needs a sum over a leaf before it can step
(marked +), and on CPU where a loop would have two results: there it is two loops, and
both read. Counts do not depend on the machine's load. Times do: each method takes turns
with AdamW and with a copy of as many bytes as it must move, compared turn by turn.
"""

import argparse
import dataclasses
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import catalog

BASELINE = "optax.adamw"
# What these spend is products and roots of matrices.
OTHER_FAMILIES = ("curvature", "Kronecker", "spectral")
# Extra arguments that can be a number here; rows that need others are left out.
EXTRA = {"logit_grad_l1": 1.0}
NO_KERNELS = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple"}


def methods(only: list[str]) -> dict[str, tuple[optax.GradientTransformation, dict]]:
    """The transformations by name, each with its extra arguments."""
    rows = [*catalog.rows("optimizers"), *catalog.rows("wrappers")]
    chosen = [
        row.whole()
        for row in rows
        if row.applies_to == "any"
        and row.family not in OTHER_FAMILIES
        and set(row.needs) <= set(EXTRA)
        and (not only or row.name in only)
    ]
    return {
        BASELINE: (optax.adamw(1e-3), {}),
        **{
            row.name: (row.build(**row.defaults), {k: EXTRA[k] for k in row.needs})
            for row in chosen
        },
    }


def tree(leaves: int, side: int) -> dict[str, Any]:
    """Shapes of square kernels."""
    shape = jax.ShapeDtypeStruct((side, side), jnp.float32)
    return {f"block_{i}": {"kernel": shape} for i in range(leaves)}


def bytes_of(*trees: Any) -> int:
    """Bytes of all arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(trees))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, what it starts from, and what it moves."""

    run: jax.stages.Compiled
    begin: Callable[[], tuple]
    rest: tuple
    compiling: float
    must: int
    sums: bool = False

    @property
    def counted(self) -> float:
        """Bytes that its kernels read and write."""
        return (self.run.cost_analysis() or {}).get("bytes accessed", 0.0)

    @property
    def kernels(self) -> int:
        """Instructions that run one after the other."""
        text = self.run.as_text() or ""
        found = re.findall(r"= .*?\)?\S* ([a-z\-]+)\(", text[text.find("\nENTRY") :])
        return sum(name not in NO_KERNELS for name in found)

    @property
    def temporary(self) -> int:
        """Bytes of memory beside arguments and results."""
        used = self.run.memory_analysis()
        return used.temp_size_in_bytes if used else 0


def compiled(step: Callable[..., Any], *arguments: Any) -> tuple[Any, float, bool]:
    """Compiles a step whose first two arguments are donated; says whether it sums."""
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(*arguments)
    lowered, start = traced.lower(), time.perf_counter()
    run = lowered.compile()
    sums = " reduce_" in str(traced.jaxpr)
    return run, time.perf_counter() - start, sums


def drawn(shapes: Any, seed: int) -> Any:
    """Random arrays of these shapes."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return structure.unflatten([jax.random.normal(k, x.shape) for k, x in pairs])


def stepping(
    tx: optax.GradientTransformation, extra: dict[str, Any], params: Any, grads: Any
) -> Program:
    """A step of an optimizer with its application."""
    tx = optax.with_extra_args_support(tx)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    def begin() -> tuple[Any, Any]:
        w = drawn(params, 0)
        return w, jax.jit(tx.init)(w)

    state = jax.eval_shape(tx.init, params)
    run, seconds, sums = compiled(step, params, state, params)
    must = bytes_of(params, state, params, params, state)
    return Program(run, begin, (grads,), seconds, must, sums)


def copying(size: int, leaves: int) -> Program:
    """A copy that reads and writes `size` bytes in all, in as many leaves."""
    shape = jax.ShapeDtypeStruct((size // (8 * leaves),), jnp.float32)
    shapes = [shape] * leaves

    def copy(arrays: Any, nothing: Any) -> tuple[Any, Any]:
        return [x + 1 for x in arrays], nothing  # adding costs no time here

    run, seconds, _ = compiled(copy, shapes, ())
    return Program(run, lambda: (drawn(shapes, 0), ()), (), seconds, size)


def interleaved(programs: list[Program], turns: int) -> list[list[float]]:
    """Times programs in turns; returns the seconds of each turn but the first."""
    carries = [program.begin() for program in programs]
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(turns + 1):
        for index, program in enumerate(programs):
            start = time.perf_counter()
            carries[index] = jax.block_until_ready(
                program.run(*carries[index], *program.rest)
            )
            seconds[index].append(time.perf_counter() - start)
    return [values[1:] for values in seconds]


def ratios(mine: list[float], theirs: list[float]) -> tuple[float, float]:
    """The median over turns of the ratio of times, and that of the fastest turns."""
    pairs = zip(mine, theirs, strict=True)
    return statistics.median(m / t for m, t in pairs), min(mine) / min(theirs)


def measure(leaves: int, side: int, turns: int, only: list[str]) -> None:
    """Prints the table of a tree, a line as soon as it is measured."""
    params = tree(leaves, side)
    size, grads = bytes_of(params), drawn(params, 1) if turns else ()
    titles = ["must", "counted", "counted : must", "kernels", "temporary", "compile"]
    if turns:
        titles += ["step, median", "step, fastest", "fastest : must", "step / copy"]
    print(f"\n| {leaves} x {side} x {side} | {' | '.join(titles)} |")
    print("| --- |" + " ---: |" * len(titles), flush=True)
    base = None
    for name, (tx, extra) in methods(only).items():
        program = stepping(tx, extra, params, grads)
        base = base or program
        must, counted = program.must / base.must, program.counted / base.counted
        cells = [
            f"{must:.2f}",
            f"{counted:.2f}",
            f"{counted / must:.2f}",
            f"{program.kernels / base.kernels:.1f}",
            f"{program.temporary / size:.2f}",
            f"{program.compiling / base.compiling:.1f}",
        ]
        if turns:
            three = [program, base, copying(program.must, leaves)]
            mine, adamw, copy = interleaved(three, turns)
            median, fastest = ratios(mine, adamw)
            cells += [f"{median:.2f}", f"{fastest:.2f}", f"{fastest / must:.2f}"]
            cells += [f"{ratios(mine, copy)[1]:.2f}"]
        mark = " +" if program.sums else ""
        print(f"| `{name}`{mark} | {' | '.join(cells)} |", flush=True)
    print(
        f"\n`{BASELINE}`: {base.must / size:.1f} parameters' bytes, counted"
        f" {base.counted / size:.1f}, {base.kernels} kernels, compiled in"
        f" {base.compiling:.1f} s"
        if base
        else ""
    )


def main() -> None:
    """Prints a table for one large leaf and one for many small ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", type=int, default=4096, help="side of the one leaf")
    parser.add_argument("--small", type=int, default=128, help="side of the others")
    parser.add_argument("--leaves", type=int, default=400)
    parser.add_argument("--turns", type=int, default=9, help="0: counts only")
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.default_backend()}")
    for leaves, side in ((1, arguments.large), (arguments.leaves, arguments.small)):
        measure(leaves, side, arguments.turns, arguments.only)


if __name__ == "__main__":
    main()
