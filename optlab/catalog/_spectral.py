"""Rows of the optimizers that take the polar factor of matrices."""

from collections.abc import Mapping
from typing import Any

from optlab import kernels, optimizers, sharding
from optlab.catalog._row import Paper, Row

# Arguments of every method of this family that are no numbers to trace.
_STATIC = (
    "accumulator_dtype",
    "mask",
    "momentum",
    "nesterov",
    "orthogonalize",
    "rest",
    "scale",
    "views",
)


def _muon_on_mesh(mesh: Any, axes: Any) -> Mapping[str, Any]:
    return {"orthogonalize": sharding.over_axis(kernels.newton_schulz, mesh, axes)}


ROWS = (
    Row(
        "muon",
        optimizers.muon,
        "optimizers",
        "spectral",
        Paper(
            "Jordan et al.",
            "Muon: an optimizer for hidden layers in neural networks",
            2024,
            "https://kellerjordan.github.io/posts/muon/",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 0.02, "rest": optimizers.adamw(3e-4)},
        static=_STATIC,
        on_mesh=_muon_on_mesh,
    ),
    Row(
        "normuon",
        optimizers.normuon,
        "optimizers",
        "spectral",
        Paper(
            "Li et al.",
            "NorMuon: making Muon more efficient and scalable",
            2025,
            "https://arxiv.org/abs/2510.05491",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 0.02, "rest": optimizers.adamw(3e-4)},
        static=_STATIC,
        on_mesh=_muon_on_mesh,
    ),
)
