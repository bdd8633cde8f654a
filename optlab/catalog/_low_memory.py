"""Rows of the optimizers that keep little state."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

# What `optax.inject_hyperparams` must leave alone in all rows with a subspace.
_STATIC = ("basis", "decay_order", "every", "mask", "rank", "rest", "side", "views")

_SINGULAR = {
    "multi_steps": "the mean of gradients is off by a rounding error, which singular"
    " vectors multiply by one over the gap of the singular values"
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
        static=(*_STATIC, "bias_correction"),
        exempt=_SINGULAR,
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
