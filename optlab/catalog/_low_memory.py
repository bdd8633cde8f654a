"""Rows of the optimizers that keep little state."""

from optlab import kernels, optimizers
from optlab.catalog._row import Paper, Row, spread_on_mesh

# What `optax.inject_hyperparams` must leave alone in all rows with a subspace.
_STATIC = ("basis", "decay_order", "every", "mask", "rank", "rest", "views")

_SINGULAR = {
    "multi_steps": "the mean of gradients is off by a rounding error, which singular"
    " vectors multiply by one over the gap of the singular values"
}

_NATURAL = {
    promise: "without noise the last gradients are nearly one, and the inverse of their"
    " sum takes just that direction out unless the damping has their size"
    for promise in ("descends_quadratic", "descends_rosenbrock")
}

_DRAWN = {
    promise: "draws go by the place of a matrix among those of its shape, which the"
    " leaves that are masked away would have taken"
    for promise in ("masked", "partition")
}

ROWS: tuple[Row, ...] = (
    Row(
        "galore",
        optimizers.galore,
        "optimizers",
        "low memory",
        Paper(
            "Zhao et al.",
            "GaLore: memory-efficient LLM training by gradient low-rank projection",
            2024,
            "https://arxiv.org/abs/2403.03507",
        ),
        applies_to="matrix",
        # A rank that the smallest models have; the authors' is 128.
        defaults={
            "learning_rate": 1e-2,
            "rank": 2,
            "every": 10,
            "rest": optimizers.adamw(3e-4),
        },
        static=(*_STATIC, "bias_correction", "side", "over"),
        on_mesh=spread_on_mesh,
        exempt=_SINGULAR,
    ),
    Row(
        "fira",
        optimizers.fira,
        "optimizers",
        "low memory",
        Paper(
            "Chen et al.",
            "Fira: can we achieve full-rank training of LLMs under low-rank"
            " constraint?",
            2024,
            "https://arxiv.org/abs/2410.01623",
        ),
        applies_to="matrix",
        defaults={
            "learning_rate": 1e-2,
            "rank": 2,
            "every": 10,
            "rest": optimizers.adamw(3e-4),
        },
        static=(*_STATIC, "residual", "side", "over"),
        on_mesh=spread_on_mesh,
        exempt=_SINGULAR,
    ),
    Row(
        "apollo",
        optimizers.apollo,
        "optimizers",
        "low memory",
        Paper(
            "Zhu et al.",
            "APOLLO: SGD-like memory, AdamW-level performance",
            2024,
            "https://arxiv.org/abs/2412.05270",
        ),
        applies_to="matrix",
        defaults={
            "learning_rate": 1e-2,
            "rank": 2,
            "every": 10,
            "rest": optimizers.adamw(3e-4),
        },
        static=(*_STATIC[1:], "granularity", "key", "over"),
        on_mesh=spread_on_mesh,
        exempt=_DRAWN,
    ),
    Row(
        "frugal",
        optimizers.frugal,
        "optimizers",
        "low memory",
        Paper(
            "Zmushko et al.",
            "FRUGAL: memory-efficient optimization by reducing state overhead for"
            " scalable training",
            2024,
            "https://arxiv.org/abs/2411.07837",
        ),
        applies_to="matrix",
        defaults={
            "learning_rate": 1e-3,
            "every": 10,
            "rest": optimizers.adamw(3e-4),
        },
        static=(
            *("basis", "choose", "density", "every", "inner", "key", "mask"),
            *("order", "projection", "reset", "rest", "side", "state_free", "views"),
        ),
        exempt=_DRAWN,
    ),
    Row(
        "natural_galore",
        optimizers.natural_galore,
        "optimizers",
        "low memory",
        Paper(
            "Das",
            "Natural GaLore: accelerating GaLore for memory-efficient LLM training and"
            " fine-tuning",
            2024,
            "https://arxiv.org/abs/2410.16029",
        ),
        applies_to="matrix",
        defaults={
            "learning_rate": 1e-2,
            "rank": 4,
            "every": 10,
            # In singular vectors of both sides the first coordinates are diagonal, and
            # with a small eps Adam blows up the rounding beside the diagonal.
            "basis": kernels.range_basis,
            "eps": 1e-3,
            "rest": optimizers.adamw(3e-4),
        },
        static=(*_STATIC, "history", "over"),
        on_mesh=spread_on_mesh,
        exempt=_NATURAL,
    ),
    Row(
        "scale",
        optimizers.scale,
        "optimizers",
        "low memory",
        Paper(
            "Glentis et al.",
            "A minimalist optimizer design for LLM pretraining",
            2025,
            "https://arxiv.org/abs/2506.16659",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 1e-3, "rest": optimizers.adamw(3e-4)},
        static=("head", "mask", "norm", "rest", "views"),
    ),
)
