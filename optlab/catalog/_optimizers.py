"""Rows of the optimizers."""

from collections.abc import Mapping
from typing import Any

from optlab import kernels, optimizers, sharding
from optlab.catalog._row import Paper, Row


def _muon_on_mesh(mesh: Any, axes: Any) -> Mapping[str, Any]:
    return {"orthogonalize": sharding.over_axis(kernels.newton_schulz, mesh, axes)}


ROWS = (
    Row(
        "sgd",
        optimizers.sgd,
        "optimizers",
        "first order",
        Paper(
            "Polyak",
            "Some methods of speeding up the convergence of iteration methods",
            1964,
            "https://doi.org/10.1016/0041-5553(64)90137-5",
        ),
        defaults={"learning_rate": 0.1, "momentum": 0.9},
        static=("nesterov",),
    ),
    Row(
        "adamw",
        optimizers.adamw,
        "optimizers",
        "adaptive",
        Paper(
            "Loshchilov, Hutter",
            "Decoupled weight decay regularization",
            2017,
            "https://arxiv.org/abs/1711.05101",
        ),
        defaults={"learning_rate": 1e-3},
        static=("mask",),
    ),
    Row(
        "nadamw",
        optimizers.nadamw,
        "optimizers",
        "adaptive",
        Paper(
            "Dozat",
            "Incorporating Nesterov momentum into Adam",
            2016,
            "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
        ),
        defaults={"learning_rate": 1e-3},
        static=("mask",),
    ),
    Row(
        "lion",
        optimizers.lion,
        "optimizers",
        "sign",
        Paper(
            "Chen et al.",
            "Symbolic discovery of optimization algorithms",
            2023,
            "https://arxiv.org/abs/2302.06675",
        ),
        defaults={"learning_rate": 1e-4},
        static=("mask",),
    ),
    Row(
        "fedhyper",
        optimizers.fedhyper,
        "optimizers",
        "hypergradient",
        Paper(
            "Wang et al.",
            "FedHyper: a universal and robust learning rate scheduler for federated"
            " learning with hypergradient descent",
            2023,
            "https://arxiv.org/abs/2310.03156",
        ),
        defaults={"learning_rate": 0.1, "normalize": True},
        static=("bounds", "momentum", "normalize"),
    ),
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
        static=(
            "accumulator_dtype",
            "mask",
            "momentum",
            "nesterov",
            "orthogonalize",
            "rest",
            "scale",
            "views",
        ),
        on_mesh=_muon_on_mesh,
    ),
)
