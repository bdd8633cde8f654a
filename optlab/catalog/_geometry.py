"""Rows of the methods that move along curves: signs, subspaces, spheres."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

_EXPONENTIATED = Paper(
    "Cornford et al.",
    "Brain-like learning with exponentiated gradients",
    2024,
    "https://doi.org/10.1101/2024.10.25.620272",
)

ROWS = (
    Row(
        "exponentiated_gradient",
        optimizers.exponentiated_gradient,
        "optimizers",
        "geometry",
        _EXPONENTIATED,
        defaults={"learning_rate": 0.1, "momentum": 0.9},
        static=("mask",),
    ),
    Row(
        "exponentiated_adamw",
        optimizers.exponentiated_adamw,
        "optimizers",
        "geometry",
        _EXPONENTIATED,
        defaults={"learning_rate": 1e-2},
        static=("mask",),
    ),
)
