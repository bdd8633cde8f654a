"""Rows of the optimizers that keep little state."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

ROWS: tuple[Row, ...] = (
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
