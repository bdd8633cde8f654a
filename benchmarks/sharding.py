"""Muon's step on a mesh beside Optax's: work, traffic, program and compilation.

    python benchmarks/sharding.py

Nothing is run and nothing is allocated: programs are compiled for eight devices that
the CPU stands in for, and counted. Only compilation is timed, in processor seconds, and
all programs of a mesh are compiled in turns within one run.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from optlab import kernels, optimizers, sharding

DEVICES = 8
MESHES = {"(8,)": ((8,), ("fsdp",)), "(4, 2)": ((4, 2), ("fsdp", "tp"))}
AXIS_TYPES = {"Explicit": AxisType.Explicit, "Auto": AxisType.Auto}
STANDARD = functools.partial(kernels.newton_schulz, form="standard")
# Name, kernel and dtype of the wire of each of our programs.
FORMS: dict[str, tuple[Callable[[jax.Array], jax.Array], str | None]] = {
    "standard": (STANDARD, None),
    "default": (kernels.newton_schulz, None),
    "bfloat16 wire": (kernels.newton_schulz, "bfloat16"),
}
OPTAX = "optax"
# What 'fsdp' cuts of every matrix; 'tp', where there is one, cuts the other axis.
ROWS, COLUMNS = ("fsdp", "tp"), ("tp", "fsdp")


def transformer(
    layers: int, d: int, mesh: Mesh | AbstractMesh, cut: tuple[str, str] = ROWS
) -> dict[str, Any]:
    """A transformer's matrices on a mesh: query, key and value fused, out, up, down."""
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    spec = PartitionSpec(*(axis if axis in mesh.shape else None for axis in cut))

    def leaf(shape: tuple[int, int]) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    return {
        f"layer_{i}": {name: {"kernel": leaf(shape)} for name, shape in shapes.items()}
        for i in range(layers)
    }


def placed_like(state: Any, params: Any, mesh: Mesh) -> Any:
    """Places what is shaped like a parameter where that is; the rest everywhere."""
    known = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        # The keys of a parameter are the last ones of the path to its momentum.
        like = known.get(jax.tree_util.keystr(path[-3:]))
        everywhere = NamedSharding(mesh, PartitionSpec())
        where = like.sharding if like and like.shape == leaf.shape else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(place, state)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is counted of a compiled step; all but the last two are of one device.

    Attributes:
      gigaflops: FLOPs, as the compiler counts them.
      megabytes: What the device sends.
      collectives: How often each kind of collective runs in a step.
      in_loops: Collectives inside loops.
      temporary: Megabytes of memory beside arguments and results.
      products: Matrix products in the program.
      conditionals: Branches that are taken at run time, of which all are counted.
      kilobytes: Size of the program's text.
      seconds: Processor time of tracing and compiling, the least of the repeats.
    """

    gigaflops: float
    megabytes: float
    collectives: dict[str, float]
    in_loops: int
    temporary: float
    products: int
    conditionals: int
    kilobytes: float
    seconds: float


def compiled(tx: optax.GradientTransformation, params: Any, mesh: Mesh) -> Program:
    """Compiles an update and its application, parameters and state donated."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jax.clear_caches()
    with jax.set_mesh(mesh):
        state = placed_like(jax.eval_shape(tx.init, params), params, mesh)
        out = jax.tree.map(lambda x: x.sharding, (params, state))
        start = time.process_time()
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=out)
        run = jitted.lower(params, state, params).compile()
        seconds = time.process_time() - start
    text, memory, cost = run.as_text() or "", run.memory_analysis(), run.cost_analysis()
    if re.search(r" while\(", text):
        raise RuntimeError("the program has a loop, whose body would be counted once")
    sent = sharding.collectives(text)
    return Program(
        gigaflops=(cost or {})["flops"] / 1e9,
        megabytes=sent.bytes / 1e6,
        collectives=sent.counts,
        in_loops=sent.in_loops,
        temporary=memory.temp_size_in_bytes / 1e6 if memory else 0.0,
        products=len(re.findall(r" (?:dot|custom-call)\(", text)),
        conditionals=text.count(" conditional("),
        kilobytes=len(text) / 1e3,
        seconds=seconds,
    )


def ours(form: str, params: Any, mesh: Mesh) -> optax.GradientTransformationExtraArgs:
    """Our Muon over all axes of the mesh; `placed` is what an Auto mesh needs."""
    kernel, wire = FORMS[form]
    over = sharding.over_axis(kernel, mesh, tuple(mesh.shape), wire_dtype=wire)
    tx = optimizers.muon(0.02, orthogonalize=over)
    return sharding.placed(tx, jax.tree.map(lambda x: x.sharding, params))


def programs(
    layers: int, d: int, shape: str, cut: tuple[str, str] = ROWS
) -> Iterator[tuple[tuple[str, str], Callable[[], Program]]]:
    """Yields (program, axes of the mesh) and what compiles it."""
    for axes, axis_type in AXIS_TYPES.items():
        sizes, names = MESHES[shape]
        mesh = jax.make_mesh(sizes, names, axis_types=(axis_type,) * len(sizes))
        params = transformer(layers, d, mesh, cut)
        for form in FORMS:
            tx = ours(form, params, mesh)
            yield (form, axes), functools.partial(compiled, tx, params, mesh)
        if axis_type == AxisType.Auto:  # on the other it raises
            tx = optax.contrib.muon(0.02)
            yield (OPTAX, axes), functools.partial(compiled, tx, params, mesh)


def measure(layers: int, d: int, shape: str, repeats: int) -> dict[tuple, Program]:
    """Compiles all programs of a mesh in turns."""
    found: dict[tuple, Program] = {}
    for _ in range(repeats):
        for name, compile_it in programs(layers, d, shape):
            now = compile_it()
            least = min(now.seconds, found.get(name, now).seconds)
            found[name] = dataclasses.replace(now, seconds=least)
            print(f"{shape} {name} {now.seconds:.1f} s", flush=True)
    return found


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a step of a device needs at least.

    Attributes:
      gigaflops: Its share of five steps of Newton-Schulz in the standard form.
      gram: The same in the form that `kernels.polar_plan` chooses.
      megabytes: All that it holds of the matrices, sent to where they are whole, and
        back, but for the part that stays.
    """

    gigaflops: float
    gram: float
    megabytes: float


def bounds(layers: int, d: int) -> Bounds:
    """The least that a step must do, from shapes alone."""
    mesh = AbstractMesh(*MESHES["(8,)"])
    leaves = jax.tree.leaves(transformer(layers, d, mesh))

    def share(**settings: Any) -> float:
        plans = (kernels.polar_plan(leaf.shape, **settings) for leaf in leaves)
        return sum(plan.flops for plan in plans) / DEVICES / 1e9

    held = 4 * sum(leaf.size for leaf in leaves) / DEVICES
    sent = 2 * held * (DEVICES - 1) / DEVICES
    return Bounds(share(form="standard"), share(), sent / 1e6)


@dataclasses.dataclass(frozen=True)
class Goal:
    """One line of the last table: what was wanted, and what came out at worst."""

    what: str
    most: float
    found: float

    @property
    def met(self) -> str:
        return "met" if self.found <= self.most else "missed"


def goals(shape: str, table: dict[tuple, Program], least: Bounds) -> list[Goal]:
    """What the table of a mesh shows, at worst over the mesh's two axis types."""
    theirs = table[OPTAX, "Auto"]
    shapes = 4  # of matrices; each is one stack

    def goal(
        what: str, most: float, of: Callable[[Program], float], *forms: str
    ) -> Goal:
        ours = (table[form, axes] for form in forms or FORMS for axes in AXIS_TYPES)
        return Goal(f"{shape}: {what}", most, max(map(of, ours)))

    def work(one: Program) -> float:
        return one.gigaflops / least.gigaflops

    def sent(one: Program) -> float:
        return one.megabytes / least.megabytes

    def calls(one: Program) -> float:
        return sum(one.collectives.values())

    def others(one: Program) -> float:
        return calls(one) - one.collectives.get("all_to_all", 0)

    whole = ("standard", "default")
    return [
        goal("FLOPs / standard share, standard form", 1.02, work, "standard"),
        goal("FLOPs / standard share, default form", 0.68, work, "default"),
        goal("bytes / least", 1.02, sent, *whole),
        goal("bytes / least, bfloat16 wire", 0.52, sent, "bfloat16 wire"),
        goal("collectives a shape", 2, lambda one: calls(one) / shapes),
        goal("collectives that are no all-to-all", 0, others),
        goal("collectives inside loops", 0, lambda one: one.in_loops),
        goal("compilation / Optax's", 0.25, lambda one: one.seconds / theirs.seconds),
        goal("temporary / Optax's", 1.3, lambda one: one.temporary / theirs.temporary),
    ]


def show(shape: str, table: dict[tuple, Program], least: Bounds) -> None:
    """Prints the table of a mesh in Markdown."""
    theirs = table[OPTAX, "Auto"]
    print(
        f"\n| mesh {shape} | axes | GFLOP | of share | MB sent | of least | collectives"
        " | temporary, MB | of Optax's | program, KB | compilation, s | of Optax's |"
    )
    print("| --- | --- |" + " ---: |" * 4 + " --- |" + " ---: |" * 5)
    for (name, axes), one in table.items():
        kinds = (f"{count} {kind}" for kind, count in one.collectives.items())
        print(
            f"| {name} | {axes} | {one.gigaflops:.4g}"
            f" | {one.gigaflops / least.gigaflops:.2f} | {one.megabytes:.4g}"
            f" | {one.megabytes / least.megabytes:.2f} | {', '.join(kinds)}"
            f" | {one.temporary:.3g} | {one.temporary / theirs.temporary:.2f}"
            f" | {one.kilobytes:.0f} | {one.seconds:.1f}"
            f" | {one.seconds / theirs.seconds:.2f} |",
            flush=True,
        )


def owners(layers: int, shape: str) -> Any:
    """Returns, by path of each matrix, the device that its kernel ran on.

    In place of the kernel runs one that fills matrices with the device's number. They
    are small, for which device gets which depends on the ratios of sizes alone.
    """
    sizes, names = MESHES[shape]
    mesh = jax.make_mesh(sizes, names)

    def number(x: jax.Array) -> jax.Array:
        return jnp.full_like(x, jax.lax.axis_index(names))

    params = jax.tree.map(
        lambda x: jax.device_put(jnp.ones(x.shape), x.sharding),
        transformer(layers, 16, mesh),
    )
    over = sharding.over_axis(number, mesh, names)
    tx = optimizers.scale_by_muon(scale="none", orthogonalize=over)
    with jax.set_mesh(mesh):
        updates, _ = jax.jit(tx.update)(params, tx.init(params))
    return jax.tree.map(lambda x: int(x.max()), updates)


def few(d: int, shape: str) -> list[Goal]:
    """Three matrices of each of four shapes on eight devices: the busiest device.

    Padded alone, each stack of three is one of eight, and a device has a matrix of each
    shape. Dealt freely is what comes out when all matrices are dealt out together, the
    costliest first and each to the device with the least work.
    """
    layers = 3
    own, least = owners(layers, shape), bounds(layers, d)
    params = transformer(layers, d, AbstractMesh(*MESHES[shape]))
    costs = jax.tree.map(lambda x: kernels.polar_plan(x.shape).flops / 1e9, params)
    loads, dealt = [0.0] * DEVICES, [0.0] * DEVICES
    for device, cost in zip(*map(jax.tree.leaves, (own, costs)), strict=True):
        loads[device] += cost
    for cost in sorted(jax.tree.leaves(costs), reverse=True):
        dealt[dealt.index(min(dealt))] += cost
    program = dict(programs(layers, d, shape))["default", "Explicit"]()
    if not program.conditionals:
        loads = [program.gigaflops]  # all devices work on padding
    padded = math.ceil(layers / DEVICES) * DEVICES / layers
    what = f"{shape}: FLOPs of the busiest / default share, stacks of {layers}"
    free = f"dealt freely {max(dealt) / least.gram:.2f}"
    return [Goal(f"{what} ({free})", padded, max(loads) / least.gram)]


def by_columns(d: int, shape: str) -> dict[str, str]:
    """What the other way to cut changes, for two layers: Optax's traffic and work."""
    least, found = bounds(2, d), {}
    for what, cut in {"rows": ROWS, "columns": COLUMNS}.items():
        made = dict(programs(2, d, shape, cut))
        for name in (OPTAX, "default"):
            one = made[name, "Auto"]()
            found[f"{shape}, {name}, {what}"] = (
                f"{one.megabytes / least.megabytes:.1f} of least bytes,"
                f" {one.gigaflops / least.gigaflops:.2f} of standard share"
            )
    return found


def depth(d: int, shape: str) -> list[Goal]:
    """What becomes more when the layers do."""
    shallow, deep = (
        dict(programs(layers, d, shape))["default", "Explicit"]() for layers in (4, 96)
    )
    counts = [sum(one.collectives.values()) for one in (shallow, deep)]
    where = f"{shape}: 96 layers against 4"
    return [
        Goal(f"{where}, collectives more", 0, counts[1] - counts[0]),
        Goal(f"{where}, products more", 0, deep.products - shallow.products),
    ]


def main() -> None:
    """Prints the tables and writes what was counted beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 16), ("d", 512), ("small", 32), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--meshes", nargs="*", choices=MESHES, default=list(MESHES))
    beside = pathlib.Path(__file__).with_suffix(".json")
    parser.add_argument("--out", type=pathlib.Path, default=beside)
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    setting = f"jax {jax.__version__}, optax {optax.__version__}, {DEVICES} CPU devices"
    print(f"{setting}, {given.layers} layers, d = {given.d}")
    least = bounds(given.layers, given.d)
    print(f"a device's share: {dataclasses.asdict(least)}")
    lines, tables, cuts = [], {}, {}
    for shape in given.meshes:
        table = measure(given.layers, given.d, shape, given.repeats)
        show(shape, table, least)
        lines += goals(shape, table, least)
        lines += few(given.d, shape) + depth(given.small, shape)
        cuts |= by_columns(given.small, shape)
        tables[shape] = {
            f"{name}, {axes}": dataclasses.asdict(one)
            for (name, axes), one in table.items()
        }
    print("\n| | at most | found | |\n| --- | ---: | ---: | --- |")
    for line in lines:
        print(f"| {line.what} | {line.most:.3g} | {line.found:.3g} | {line.met} |")
    print(f"\n2 layers, d = {given.small}, cut by 'fsdp' by rows and by columns")
    print("\n".join(f"- {name}: {found}" for name, found in cuts.items()))
    record = {
        "setting": setting,
        "layers": given.layers,
        "d": given.d,
        "least": dataclasses.asdict(least),
        "programs": tables,
        "cuts": cuts,
        "goals": [dataclasses.asdict(one) | {"met": one.met} for one in lines],
    }
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
