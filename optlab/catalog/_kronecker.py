"""Rows of the optimizers of Kronecker factors."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row, spread_on_mesh

ROWS: tuple[Row, ...] = (
    Row(
        "soap",
        optimizers.soap,
        "optimizers",
        "Kronecker",
        Paper(
            "Vyas et al.",
            "SOAP: improving and stabilizing Shampoo using Adam",
            2024,
            "https://arxiv.org/abs/2409.11321",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 3e-3, "rest": optimizers.adamw(3e-4)},
        static=(
            "accumulator_dtype",
            "bias_correction",
            "decay_order",
            "eigenbasis",
            "every",
            "mask",
            "over",
            "max_size",
            "normalize",
            "refresh",
            "rest",
            "vectors",
            "views",
        ),
        on_mesh=spread_on_mesh,
        exempt={
            "multi_steps": "the mean of three gradients is rounded, and eigenvectors"
            " amplify that by the inverse distance of their eigenvalues: 2.3e-6 where"
            " 1.9e-6 is allowed"
        },
    ),
    Row(
        "shampoo",
        optimizers.shampoo,
        "optimizers",
        "Kronecker",
        Paper(
            "Gupta, Koren, Singer",
            "Shampoo: preconditioned stochastic tensor optimization",
            2018,
            "https://arxiv.org/abs/1802.09568",
        ),
        applies_to="matrix",
        # Short runs need roots soon.
        defaults={"learning_rate": 1e-3, "rest": optimizers.adamw(3e-4), "every": 3},
        static=(
            "accumulator_dtype",
            "bias_correction",
            "block_size",
            "every",
            "graft",
            "mask",
            "over",
            "rest",
            "root",
            "root_order",
            "start",
            "views",
        ),
        on_mesh=spread_on_mesh,
    ),
    Row(
        "psgd_kron",
        optimizers.psgd_kron,
        "optimizers",
        "Kronecker",
        Paper(
            "Li",
            "Preconditioned stochastic gradient descent",
            2015,
            "https://arxiv.org/abs/1512.04202",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 1e-3, "rest": optimizers.adamw(3e-4)},
        static=(
            *("accumulator_dtype", "clip_entries", "diagonal", "geometry", "key"),
            *("mask", "max_size", "max_skew", "min_order", "normal", "probability"),
            *("over", "probes", "refresh_first", "rest", "running_mean", "views"),
            "whiten",
        ),
        on_mesh=spread_on_mesh,
    ),
)
