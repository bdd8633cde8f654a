"""Rows of the first-order optimizers."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

_ADAMP = Paper(
    "Heo et al.",
    "AdamP: slowing down the slowdown for momentum optimizers on scale-invariant"
    " weights",
    2020,
    "https://arxiv.org/abs/2006.08217",
)

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
        "adamp",
        optimizers.adamp,
        "optimizers",
        "adaptive",
        _ADAMP,
        defaults={"learning_rate": 1e-3},
        static=("channel_axis", "mask", "nesterov", "views"),
    ),
    Row(
        "sgdp",
        optimizers.sgdp,
        "optimizers",
        "first order",
        _ADAMP,
        defaults={"learning_rate": 0.1},
        static=("channel_axis", "mask", "nesterov", "project_momentum", "views"),
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
)
