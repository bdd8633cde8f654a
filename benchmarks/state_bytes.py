"""Bytes of optimizer state for each parameter of a transformer, by method.

    python benchmarks/state_bytes.py --d 512 --layers 8 --vocabulary 32000 --rank 128

Every optimizer and wrapper of the catalogue, a link with SGD with momentum beside it.
Nothing is allocated: sizes are those of `jax.eval_shape(init)`. `stated` is what the
paper's equations remember of a hidden matrix, in float32. What is measured must agree
but for counters, rates and keys; `tests/test_state_bytes.py` holds it to that.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import catalog

# Bytes a hidden parameter that may lie beside what is stated.
TOLERANCE = 2e-3


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Sides of a kernel."""

    inputs: int
    outputs: int

    @property
    def m(self) -> int:
        """The short side."""
        return min(self.inputs, self.outputs)

    @property
    def n(self) -> int:
        """The long side."""
        return max(self.inputs, self.outputs)

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.m * self.n


# Bytes that a method states for a matrix: of each entry, or a formula.
Claim = float | Callable[[Matrix], float]


def _factors(x: Matrix) -> float:
    """Numbers in one square factor for each side."""
    return x.m**2 + x.n**2


def _in_blocks(x: Matrix, side: int = 1024) -> float:
    """The same where long sides are cut into blocks, the short side being none."""
    whole, left = divmod(x.n, side)
    return whole * (x.m**2 + side**2) + (x.m**2 + left**2 if left else 0)


def claims(rank: int) -> dict[str, tuple[str, Mapping[str, Any], Claim]]:
    """For each line its row, the settings that differ from the row's, and the claim."""
    r, low_rank = rank, {"rank": rank}
    # Of 9, a byte says whether an entry is trained; the averages of those that are not
    # are kept too, where the paper has none: shapes cannot depend on the weights.
    # Those without any remember something of the head alone.
    entries = {
        0: "adagrad_norm normalized_logistic scale",
        4: "sgd sgdp lion signum fedhyper scion rmsprop adagrad lars muon turbo_muon"
        " muon_bp dion2 triple_momentum optimistic_mirror_descent"
        " exponentiated_gradient centralize_gradients clip_coordinates qk_clip momo"
        " dowg",
        8: "adamw nadamw adamp adabelief yogi adopt radam adamax simplified_ademamix"
        " lamb exponentiated_adamw adahessian sophia schedule_free_sgd cautious"
        " project_scale_invariant stochastic_rounding dadapt_sgd dadapt_lion dog ldog"
        " momo_adam sharpness_aware",
        9: "sparse_finetuning",
        12: "diffgrad ademamix amsgrad schedule_free_adamw hypergradient dadapt_adam"
        " mechanic",
        16: "adan prodigy",
        20: "dadapt_adan",
        24: "denoise_subspace",  # three iterates, two directions, the momentum
        4 * 32: "mfac",
    }
    formulas: dict[str, Callable[[Matrix], float]] = {
        "sgd_sai": lambda x: 4 * x.size + 4,
        "normalize_and_project": lambda x: 4 * x.size + 4,
        "novograd": lambda x: 4 * x.size + 4,
        "lanton": lambda x: 8 * x.size + 4,
        "adafactor": lambda x: 4 * (x.m + x.n),
        # Square matrices go to the rest: their columns would fill the space.
        "riemannian_sgd": lambda x: 4 * x.size * (x.m < x.n),
        "normuon": lambda x: 4 * (x.size + x.outputs),
        "dion": lambda x: 4 * (x.size + 2 * x.inputs),
        "soap": lambda x: 8 * (x.size + _factors(x)),
        "shampoo": lambda x: 8 * (x.size + _in_blocks(x)),
        "psgd_kron": lambda x: 4 * (x.size + _factors(x)),
        "mkor": lambda x: 4 * (x.size + _factors(x)),
        "mkor_h": lambda x: 4 * (x.size + _factors(x)),
        "kfac": lambda x: 4 * (x.size + 2 * _factors(x)),
    }
    settings: dict[str, tuple[str, Mapping[str, Any], Claim]] = {
        "galore": ("galore", low_rank, lambda x: 4 * (x.m * r + 2 * r * x.n)),
        "galore, long side": (
            "galore",
            {**low_rank, "side": "long"},
            lambda x: 4 * (x.n * r + 2 * r * x.m),
        ),
        "natural_galore": (
            "natural_galore",
            low_rank,
            lambda x: 4 * (r * (x.m + x.n) + 22 * r * r),
        ),
        "fira": ("fira", low_rank, lambda x: 4 * (x.m * r + 2 * r * x.n + 1)),
        "apollo": ("apollo", low_rank, lambda x: 4 * (2 * r * x.n + 1)),
        "apollo, mini": (
            "apollo",
            {"rank": 1, "granularity": "tensor", "scale": 128.0},
            lambda x: 4 * (2 * x.n + 1),
        ),
        "frugal": ("frugal", {}, 2),
        "frugal, entries": ("frugal", {"projection": "entries"}, 3),
        # A fourth of the matrices: in turn a fourth of each size; at random there is
        # room for the largest, a third of all entries here.
        "frugal, tensors": ("frugal", {"projection": "tensors"}, 8 / 3),
        "frugal, tensors in turn": (
            "frugal",
            {"projection": "tensors", "order": "ascending"},
            2,
        ),
        "state_precision, 2 bytes": (
            "state_precision",
            {"stored": "bfloat16", "inner": optax.adam(1e-3)},
            4,
        ),
        "state_precision, 1 byte": (
            "state_precision",
            {"stored": "8bit", "inner": optax.adam(1e-3)},
            lambda x: 2 * (1 + 4 / 256) * x.size,  # a scale for 256 entries
        ),
    }
    plain = {name: claim for claim, names in entries.items() for name in names.split()}
    plain = {name: (name, {}, claim) for name, claim in {**plain, **formulas}.items()}
    return {**plain, **settings}


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


def hidden_matrices(params: dict[str, Any]) -> dict[str, Any]:
    """The kernels of the blocks."""
    return {
        name: {part: leaf for part, leaf in block.items() if part != "norm"}
        for name, block in params.items()
        if name.startswith("block")
    }


def bytes_of(tx: optax.GradientTransformation, params: Any) -> int:
    """Bytes of all arrays of the first state."""
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(x.size * x.dtype.itemsize for x in leaves)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table; None where nothing is stated.

    Attributes:
      name: Row of the catalogue and what was set.
      hidden: Measured bytes a parameter of the hidden matrices alone.
      stated: What the paper's equations remember of them.
      whole: Measured bytes a parameter of the whole model.
    """

    name: str
    hidden: float
    stated: float | None
    whole: float


def measured(params: dict[str, Any], rank: int) -> Iterator[Line]:
    """Measures every row of the catalogue, also in the settings that have claims."""
    hidden = hidden_matrices(params)
    matrices = [Matrix(*p.shape) for p in jax.tree.leaves(hidden)]
    size = sum(x.size for x in matrices)
    total = sum(p.size for p in jax.tree.leaves(params))
    known = claims(rank)
    with_claims = {row for row, *_ in known.values()}
    for row in (*catalog.rows("optimizers"), *catalog.rows("wrappers")):
        lines = {name: line for name, line in known.items() if line[0] == row.name}
        if row.name not in with_claims:
            lines = {row.name: (row.name, {}, None)}
        whole_row = row.whole()
        for name, (_, settings, claim) in lines.items():
            arguments = {**whole_row.defaults, **settings}
            whole = bytes_of(whole_row.build(**arguments), params) / total
            if "rest" in arguments:  # the matrices without it
                arguments["rest"] = optax.set_to_zero()
            alone = bytes_of(whole_row.build(**arguments), hidden) / size
            stated = None
            if claim is not None:
                each = [
                    claim(x) if callable(claim) else claim * x.size for x in matrices
                ]
                stated = sum(each) / size
            yield Line(name, alone, stated, whole)


def main() -> None:
    """Prints a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("d", 512), ("layers", 8), ("vocabulary", 32000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rank", type=int, default=128)
    sizes = parser.parse_args()
    params = transformer(sizes.d, sizes.layers, sizes.vocabulary)
    total, hidden = (
        sum(p.size for p in jax.tree.leaves(tree)) / 1e6
        for tree in (params, hidden_matrices(params))
    )
    print(f"{total:.1f} M parameters, {hidden:.1f} M in hidden matrices")
    print("| method | bytes a hidden parameter | stated | bytes a parameter |")
    print("| --- | ---: | ---: | ---: |")
    for line in measured(params, sizes.rank):
        stated = "-" if line.stated is None else f"{line.stated:.3f}"
        print(f"| `{line.name}` | {line.hidden:.3f} | {stated} | {line.whole:.3f} |")


if __name__ == "__main__":
    main()
