"""Rows of the methods that set their own rate, or need no schedule."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

_FACTOR = 1.0  # of a rate that the method finds itself

ROWS = (
    Row(
        "prodigy",
        optimizers.prodigy,
        "optimizers",
        "tuning free",
        Paper(
            "Mishchenko, Defazio",
            "Prodigy: an expeditiously adaptive parameter-free learner",
            2023,
            "https://arxiv.org/abs/2306.06101",
        ),
        defaults={"learning_rate": _FACTOR},
        static=("bias_correction", "decoupled", "mask", "safeguard_warmup", "slice_p"),
    ),
)
