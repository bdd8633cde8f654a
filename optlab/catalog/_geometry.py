"""Rows of the methods that move along curves: signs, subspaces, spheres."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row, spread_on_mesh

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
    Row(
        "riemannian_sgd",
        optimizers.riemannian_sgd,
        "optimizers",
        "geometry",
        Paper(
            "Wang, Li, Zhang",
            "Get the best of both worlds: improving accuracy and transferability by"
            " Grassmann class representation",
            2023,
            "https://arxiv.org/abs/2308.01547",
        ),
        applies_to="matrix",
        defaults={
            "learning_rate": 0.1,
            "momentum": 0.9,
            "rest": optimizers.adamw(3e-4),
            "views": "kernel",
        },
        static=("every", "manifold", "over", "rest", "retraction", "views"),
        on_mesh=spread_on_mesh,
    ),
)
