"""Rows of the optimizers that take the polar factor of matrices."""

import functools
from collections.abc import Mapping
from typing import Any

from optlab import kernels, optimizers, sharding
from optlab.catalog._row import Paper, Row, spread_on_mesh

# Arguments of every method of this family that are no numbers to trace.
_STATIC = (
    "accumulator_dtype",
    "cautious",
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


def _turbo_muon_on_mesh(mesh: Any, axes: Any) -> Mapping[str, Any]:
    kernel = functools.partial(
        kernels.newton_schulz, coefficients="turbo", prescale="aol"
    )
    return {"orthogonalize": sharding.over_axis(kernel, mesh, axes)}


def _lanton_on_mesh(mesh: Any, axes: Any) -> Mapping[str, Any]:
    measure = functools.partial(kernels.newton_schulz, coefficients="youjiacheng")
    return {
        "measure": sharding.over_axis(measure, mesh, axes),
        **_muon_on_mesh(mesh, axes),
    }


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
        static=(*_STATIC, "conv_scale"),
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
        static=(*_STATIC, "conv_scale"),
        on_mesh=_muon_on_mesh,
    ),
    Row(
        "turbo_muon",
        optimizers.turbo_muon,
        "optimizers",
        "spectral",
        Paper(
            "Boissin et al.",
            "Turbo-Muon: accelerating orthogonality-based optimization with"
            " pre-conditioning",
            2025,
            "https://arxiv.org/abs/2512.04632",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 0.02, "rest": optimizers.adamw(3e-4)},
        static=(*_STATIC, "conv_scale"),
        on_mesh=_turbo_muon_on_mesh,
        exempt={
            "vmap": "at s = 1 its first step subtracts numbers 32 times the result, so"
            " another order of sums costs more than the 16 units that are allowed; its"
            " own test asks for 32"
        },
    ),
    Row(
        "scion",
        optimizers.scion,
        "optimizers",
        "spectral",
        Paper(
            "Pethick et al.",
            "Training deep learning models with norm-constrained LMOs",
            2025,
            "https://arxiv.org/abs/2502.07529",
        ),
        defaults={
            "learning_rate": 0.02,
            "radius": {"spectral": 2.0, "sign": 20.0, "rms": 2.0},
        },
        static=(
            "accumulator_dtype",
            "constrained",
            "norms",
            "orthogonalize",
            "radius",
            "views",
        ),
        on_mesh=_muon_on_mesh,
    ),
    Row(
        "lanton",
        optimizers.lanton,
        "optimizers",
        "spectral",
        Paper(
            "Hao et al.",
            "Noise-adaptive layerwise learning rates: accelerating geometry-aware"
            " optimization for deep neural network training",
            2025,
            "https://arxiv.org/abs/2510.14009",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 0.02, "rest": optimizers.adamw(3e-4)},
        static=(
            *(name for name in _STATIC if name not in ("momentum", "nesterov")),
            *("groups", "measure", "second_gradient"),
        ),
        on_mesh=_lanton_on_mesh,
    ),
    Row(
        "dion",
        optimizers.dion,
        "optimizers",
        "spectral",
        Paper(
            "Ahn et al.",
            "Dion: distributed orthonormalized updates",
            2025,
            "https://arxiv.org/abs/2504.05295",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 0.01, "rest": optimizers.adamw(3e-4), "rank": 2},
        static=(
            "accumulator_dtype",
            "cautious",
            "key",
            "mask",
            "over",
            "rank",
            "rest",
            "views",
        ),
        on_mesh=spread_on_mesh,
    ),
    Row(
        "dion2",
        optimizers.dion2,
        "optimizers",
        "spectral",
        Paper(
            "Ahn et al.",
            "Dion2: a simple method to shrink matrix in Muon",
            2025,
            "https://arxiv.org/abs/2512.16928",
        ),
        applies_to="matrix",
        defaults={"learning_rate": 0.01, "rest": optimizers.adamw(3e-4)},
        static=(
            *("accumulator_dtype", "cautious", "fraction", "mask", "orthogonalize"),
            *("rest", "views"),
        ),
        on_mesh=_muon_on_mesh,
    ),
    Row(
        "muon_bp",
        optimizers.muon_bp,
        "optimizers",
        "spectral",
        Paper(
            "Khaled et al.",
            "MuonBP: faster Muon via block-periodic orthogonalization",
            2025,
            "https://arxiv.org/abs/2510.16981",
        ),
        applies_to="matrix",
        defaults={
            "learning_rate": 0.02,
            "rest": optimizers.adamw(3e-4),
            "every": 2,
            "blocks": (2, 2),
        },
        static=(*_STATIC, "blocks", "every"),
        on_mesh=_muon_on_mesh,
    ),
)
