"""Rows of the wrappers, each around an inner transformation of its own."""

import optax

from optlab import wrappers
from optlab.catalog._row import Paper, Row

_OWN_RATE = "the method makes its own rate and takes no schedule"

ROWS = (
    Row(
        "hypergradient",
        wrappers.hypergradient,
        "wrappers",
        "hypergradient",
        Paper(
            "Baydin et al.",
            "Online learning rate adaptation with hypergradient descent",
            2017,
            "https://arxiv.org/abs/1703.04782",
        ),
        defaults={
            "inner": optax.scale_by_adam(),
            "learning_rate": 1e-3,
            "hyper_learning_rate": 1e-6,
        },
        static=("bounds", "inner", "rule"),
        exempt={
            "schedule_equals_constant": _OWN_RATE,
            "schedule_counts_from_zero": _OWN_RATE,
            "learning_rate_is_readable": "the rate leaves the number it starts from",
        },
    ),
)
