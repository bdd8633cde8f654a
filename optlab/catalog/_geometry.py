"""Rows of the methods that move along curves: signs, subspaces, spheres."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optlab import optimizers, trees
from optlab.catalog._row import Paper, Row, spread_on_mesh

_EXPONENTIATED = Paper(
    "Cornford et al.",
    "Brain-like learning with exponentiated gradients",
    2024,
    "https://doi.org/10.1101/2024.10.25.620272",
)


def _long_sides_as_rows(params: Any) -> Any:
    """Reads every matrix of a model with more rows than columns; square ones rest."""

    def turned(leaf: Any, view: Any) -> Any:
        if view is None:
            return None
        rows, columns = (
            math.prod(jnp.shape(leaf)[axis] for axis in part)
            for part in (view.reduction, view.output)
        )
        if rows == columns:
            return None
        swapped = trees.MatrixView(view.output, view.reduction)
        return view if rows > columns else swapped

    return jax.tree.map(turned, params, trees.matrix_views(params))


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
            "views": _long_sides_as_rows,
        },
        static=("every", "manifold", "over", "rest", "retraction", "views"),
        on_mesh=spread_on_mesh,
    ),
)
