"""Bytes of optimizer state for each parameter of a transformer, by method.

    python benchmarks/state_bytes.py --d 512 --layers 8 --vocabulary 32000 --rank 128

Nothing is allocated: sizes are those of `jax.eval_shape(init)`. `formula` is what the
docstrings promise for the hidden matrices, and must agree to the byte but for counters.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import optimizers


def transformer(d: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """Shapes of a decoder: embedding, blocks of four matrices with norms, head."""
    kernels = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    block = {
        **{name: {"kernel": shape} for name, shape in kernels.items()},
        "norm": {"scale": (d,)},
    }
    shapes = {
        "embed": {"embedding": (vocabulary, d)},
        **{f"block_{i}": block for i in range(layers)},
        "head": {"kernel": (d, vocabulary)},
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def bytes_of(tx: optax.GradientTransformation, params: Any) -> int:
    """Bytes of all arrays of the first state; counters and rates are left out."""
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(x.size * x.dtype.itemsize for x in leaves if x.ndim)


# Bytes that each method states for one matrix, of short side m and long side n.
Formula = Callable[[int, int], float]


def methods(rank: int) -> dict[str, tuple[Callable[..., Any], Formula]]:
    """For each name the builder, given the optimizer of the rest, and the formula."""
    adamw, r = optimizers.adamw(1e-3), rank

    def build(make: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        return lambda rest=adamw: make(1e-3, rest=rest, **settings)

    return {
        "adamw": (lambda rest=adamw: rest, lambda m, n: 8 * m * n),
        "muon": (build(optimizers.muon), lambda m, n: 4 * m * n),
        "galore": (
            build(optimizers.galore, rank=r),
            lambda m, n: 4 * (m * r + 2 * r * n),
        ),
        "galore, long side": (
            build(optimizers.galore, rank=r, side="long"),
            lambda m, n: 4 * (n * r + 2 * r * m),
        ),
        "natural_galore": (
            build(optimizers.natural_galore, rank=r),
            lambda m, n: 4 * (r * (m + n) + 22 * r * r),
        ),
        "fira": (
            build(optimizers.fira, rank=r),
            lambda m, n: 4 * (m * r + 2 * r * n + 1),
        ),
        "apollo": (build(optimizers.apollo, rank=r), lambda m, n: 4 * (2 * r * n + 1)),
        "apollo mini": (
            build(optimizers.apollo, rank=1, granularity="tensor", scale=128.0),
            lambda m, n: 4 * (2 * n + 1),
        ),
        "frugal": (build(optimizers.frugal), lambda m, n: 2 * m * n),
        "frugal, entries": (
            build(optimizers.frugal, projection="entries"),
            lambda m, n: 3 * m * n,
        ),
        # A fourth of the matrices: in turn a fourth of each size; at random there is
        # room for the largest, a third of all entries here.
        "frugal, tensors": (
            build(optimizers.frugal, projection="tensors"),
            lambda m, n: 8 / 3 * m * n,
        ),
        "frugal, tensors in turn": (
            build(optimizers.frugal, projection="tensors", order="ascending"),
            lambda m, n: 2 * m * n,
        ),
        "scale": (build(optimizers.scale), lambda m, n: 0),
    }


def main() -> None:
    """Prints a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("d", 512), ("layers", 8), ("vocabulary", 32000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rank", type=int, default=128)
    sizes = parser.parse_args()
    params = transformer(sizes.d, sizes.layers, sizes.vocabulary)
    hidden = {name: p for name, p in params.items() if name.startswith("block")}
    matrices = [p for p in jax.tree.leaves(hidden) if p.ndim == 2]
    in_hidden = sum(p.size for p in matrices)
    total = sum(p.size for p in jax.tree.leaves(params))
    print(f"{total / 1e6:.1f} M parameters, {in_hidden / 1e6:.1f} M in hidden matrices")
    print("| method | bytes a hidden parameter | formula | bytes a parameter |")
    print("| --- | ---: | ---: | ---: |")
    for name, (build, formula) in methods(sizes.rank).items():
        alone = build(rest=optax.set_to_zero())  # the matrices without the rest
        tree = hidden if name != "adamw" else dict(enumerate(matrices))
        measured = bytes_of(build() if name == "adamw" else alone, tree) / in_hidden
        stated = sum(formula(min(p.shape), max(p.shape)) for p in matrices) / in_hidden
        whole = bytes_of(build(), params) / total
        print(f"| `{name}` | {measured:.3f} | {stated:.3f} | {whole:.3f} |")


if __name__ == "__main__":
    main()
