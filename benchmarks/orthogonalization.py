"""FLOPs against error of every way to orthogonalise, and the front of the best ones.

    python benchmarks/orthogonalization.py --picture docs/images/polar_pareto.png

Errors are |s - 1| along the singular directions of the input whose singular value is at
least 1e-3 of the largest: for Gaussian matrices, for power laws, and for the momenta of
a Flax transformer that is trained here for a few steps. FLOPs are those of the compiled
program for a 256 x 1024 matrix, relative to Optax's Muon with its five Jordan steps.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from optlab import kernels
from optlab.lab import plots, workloads

WIDE, SQUARE = (256, 1024), (256, 256)
DTYPES = ("float32", "bfloat16")
FORMS = ("standard", "gram")
PRESCALES = ("frobenius", "schatten", "schatten8", "aol")
DEFAULT = ("jordan", "frobenius")


def tables() -> dict[str, kernels.PolarTable]:
    """Named tables, and generated ones of other lengths and reaches."""
    named = ("jordan", "youjiacheng", "polar_express", "turbo", "accurate")
    found = {name: kernels.polar_table(name) for name in named}
    for lower, degrees in (
        (3e-2, (5,) * 3),
        (1e-2, (9, 9, 5)),
        (1e-3, (5,) * 6),
        (5e-4, (9,) * 4),
    ):
        name = f"{'-'.join(map(str, degrees))} from {lower:g}"
        found[name] = kernels.PolarTable(
            name=name,
            rows=kernels.minimax_rows(lower, degrees, safety=1.02),
            interval=(lower, 1 / 1.02),
            band=(0.0, 2.0),
            source="kernels.minimax_rows, safety 1.02",
            norm_factor=1.02,
            prescale="schatten8",
        )
    return found


def power_law(shape: tuple[int, int], power: float, seed: int) -> np.ndarray:
    """A matrix with singular values i^-power in random directions."""
    rng, k = np.random.default_rng(seed), min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(size, k)))[0] for size in shape)
    return (u * np.arange(1.0, k + 1) ** -power) @ v.T


def trained_momenta(steps: int) -> list[np.ndarray]:
    """Momenta of the matrices of a transformer after some steps of AdamW."""
    workload = workloads.get("shakespeare", "lecun")
    graph, params = nnx.split(workload.make_model(0))
    tx = optax.chain(optax.adamw(0.01, b1=0.7, b2=0.99))

    @jax.jit
    def step(params, state, momentum, batch):
        def loss(params):
            return workload.loss(nnx.merge(graph, params), batch)[0]

        grads = jax.grad(loss)(params)
        momentum = jax.tree.map(lambda m, g: 0.95 * m + 0.05 * g, momentum, grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, momentum

    state, momentum = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for index in range(steps):
        batch = workload.batch(0, index)
        params, state, momentum = step(params, state, momentum, batch)
    # Attention kernels have the heads as an axis of their own.
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(momentum)]
    flat = [x.reshape(x.shape[0], -1) if x.ndim > 2 else x for x in leaves]
    return [x for x in flat if x.ndim == 2 and min(x.shape) >= 64]


@dataclasses.dataclass(frozen=True)
class Group:
    """Matrices of one shape with their singular vectors."""

    name: str
    stack: np.ndarray

    def __post_init__(self) -> None:
        """Decomposes them once."""
        object.__setattr__(self, "parts", np.linalg.svd(self.stack, False))

    def errors(self, y: np.ndarray) -> np.ndarray:
        """Returns |s - 1| along the directions that count."""
        u, s, vt = self.parts  # type: ignore[attr-defined]
        along = np.einsum("bki,bkl,bil->bi", u, y, vt)
        return np.abs(along - 1)[s >= 1e-3 * s[:, :1]]


def groups(steps: int) -> list[Group]:
    """All inputs, by kind and shape."""
    rng = np.random.default_rng(0)
    found = [
        Group("Gaussian", rng.normal(size=(2, *WIDE))),
        Group("square", np.stack([rng.normal(size=SQUARE), power_law(SQUARE, 1, 3)])),
        Group("power law", np.stack([power_law(WIDE, p, 7) for p in (1.0, 2.0)])),
    ]
    shapes = {}
    for x in trained_momenta(steps):
        x = x if x.shape[0] <= x.shape[1] else x.T
        shapes.setdefault(x.shape, []).append(x)
    return found + [Group("trained", np.stack(xs)) for xs in shapes.values()]


@dataclasses.dataclass(frozen=True)
class Point:
    """One way to orthogonalise: its price and its errors (mean, largest) by kind."""

    table: str
    prescale: str
    form: str
    dtype: str
    flops: float
    errors: dict[str, tuple[float, float]]
    top: float

    @property
    def worst(self) -> float:
        """The largest error on matrices that are not flat."""
        return max(self.errors[kind][1] for kind in ("power law", "trained", "square"))

    @property
    def mean(self) -> float:
        """The mean error on what a model brings."""
        return self.errors["trained"][0]


def compiled_flops(function, shape: tuple[int, int]) -> float:
    """FLOPs of the compiled program for one matrix."""
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    return (jax.jit(function).lower(spec).compile().cost_analysis() or {})["flops"]


def optax_step(x: jax.Array) -> jax.Array:
    """Optax's Muon on one matrix: five Jordan steps and little else."""
    tx = optax.contrib.muon(1.0)
    return jax.tree.leaves(tx.update([x], tx.init([x]), [x])[0])[0]


def measure(table, prescale, form, dtype, flops, inputs: Sequence[Group]) -> Point:
    """Runs one way on all inputs; without jit, so operations are compiled once."""
    errors: dict[str, list[np.ndarray]] = {}
    top = 0.0
    for group in inputs:
        y = kernels.newton_schulz(
            jnp.asarray(group.stack, jnp.float32),
            table,
            prescale=prescale,
            form=form,
            compute_dtype=dtype,
            batching="stack",
        )
        y = np.asarray(y)
        errors.setdefault(group.name, []).append(group.errors(y).ravel())
        top = max(top, float(np.linalg.eigvalsh(y @ y.swapaxes(1, 2)).max() ** 0.5))
    numbers = {
        kind: (float(np.concatenate(e).mean()), float(np.concatenate(e).max()))
        for kind, e in errors.items()
    }
    return Point(table.name, prescale, form, dtype, flops, numbers, top)


def points(steps: int) -> list[Point]:
    """Measures every way that is allowed."""
    inputs, found = groups(steps), []
    unit = compiled_flops(optax_step, WIDE)
    for table, form, dtype in itertools.product(tables().values(), FORMS, DTYPES):

        def run(x, table=table, form=form, dtype=dtype):
            return kernels.newton_schulz(x, table, form=form, compute_dtype=dtype)

        flops = compiled_flops(run, WIDE) / unit
        found += [
            measure(table, prescale, form, dtype, flops, inputs)
            for prescale in PRESCALES
        ]
        print(f"{table.name}, {form}, {dtype}: {flops:.2f}", flush=True)
    return found


def front(found: Sequence[Point], error: str) -> list[Point]:
    """Returns the points that none beats in both FLOPs and error, cheapest first."""
    best, least = [], float("inf")
    for point in sorted(found, key=lambda p: (p.flops, getattr(p, error))):
        if getattr(point, error) < least:
            best.append(point)
            least = getattr(point, error)
    return best


def report(found: Sequence[Point]) -> None:
    """Prints a table in Markdown for each dtype; a star marks the fronts.

    Ways with another scale than the table's own are listed only on a front.
    """
    kinds = ("Gaussian", "power law", "trained", "square")
    for dtype in DTYPES:
        mine = [p for p in found if p.dtype == dtype]
        stars = {id(p) for error in ("worst", "mean") for p in front(mine, error)}
        print(f"\n| {dtype} | scale | form | FLOPs | " + " | ".join(kinds), end="")
        print(" | largest s |\n| --- | --- | --- | ---: | " + "---: | " * 5, flush=True)
        for p in sorted(mine, key=lambda p: (p.table, p.prescale, p.flops)):
            cells = (f"{p.errors[k][0]:.3f} / {p.errors[k][1]:.3f}" for k in kinds)
            star = " *" if id(p) in stars else ""
            if not star and p.prescale != tables()[p.table].prescale:
                continue
            print(
                f"| {p.table}{star} | {p.prescale} | {p.form} | {p.flops:.2f} |"
                f" {' | '.join(cells)} | {p.top:.2f} |"
            )


def draw(found: Sequence[Point], path: str) -> None:
    """Draws FLOPs against the largest and the mean error, in both dtypes."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    names = list(dict.fromkeys(p.table for p in found))
    colours = dict(zip(names, itertools.cycle(plots.COLOURS), strict=False))
    markers = {"standard": "s", "gram": "o"}
    titles = {
        "worst": "largest |s - 1|: power laws, trained, square",
        "mean": "mean |s - 1|: trained model",
    }
    for (row, error), (column, dtype) in itertools.product(
        enumerate(titles), enumerate(DTYPES)
    ):
        panel, mine = axes[row][column], [p for p in found if p.dtype == dtype]
        best = front(mine, error)
        panel.step(
            [p.flops for p in best],
            [getattr(p, error) for p in best],
            where="post",
            color="#9aa5b1",
            linewidth=1.5,
            zorder=1,
        )
        for p in mine:
            own = p.prescale == tables()[p.table].prescale
            panel.scatter(
                p.flops,
                getattr(p, error),
                color=colours[p.table],
                marker=markers[p.form],
                s=70 if own else 22,
                alpha=1.0 if own else 0.45,
                hatch="///" if names.index(p.table) >= len(plots.COLOURS) else None,
                edgecolor="white",
                linewidth=0.5,
                zorder=2,
            )
        for p in mine:
            if (p.table, p.prescale) == DEFAULT:
                panel.annotate(
                    "default" if p.form == "gram" else "Optax's",
                    (p.flops, getattr(p, error)),
                    xytext=(0, 9),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
        panel.set_yscale("log")
        panel.grid(color="#d5dae0", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(f"{dtype}: {titles[error]}", loc="left", fontsize=11)
        panel.set_xlabel("FLOPs / Optax's five Jordan steps, 256 x 1024")
    handles = [
        axes[0][0].scatter(
            [],
            [],
            color=colours[name],
            s=60,
            label=name,
            hatch="///" if i >= len(plots.COLOURS) else None,
            edgecolor="white",
        )
        for i, name in enumerate(names)
    ] + [
        axes[0][0].scatter([], [], color="#1f2933", marker=marker, s=60, label=form)
        for form, marker in markers.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(
        "Polar factors: error for the FLOPs; small points: another scale than the"
        " table's own",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measures, prints the tables and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument("--picture", default="docs/images/polar_pareto.png")
    arguments = parser.parse_args()
    found = points(arguments.steps)
    report(found)
    draw(found, arguments.picture)


if __name__ == "__main__":
    main()
