"""Rows of the adaptive first-order optimizers that Optax lacks or has otherwise."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

ROWS = (
    Row(
        "adan",
        optimizers.adan,
        "optimizers",
        "adaptive",
        Paper(
            "Xie et al.",
            "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep"
            " models",
            2022,
            "https://arxiv.org/abs/2208.06677",
        ),
        defaults={"learning_rate": 1e-3},
        static=("decay_order", "mask"),
    ),
    Row(
        "adabelief",
        optimizers.adabelief,
        "optimizers",
        "adaptive",
        Paper(
            "Zhuang et al.",
            "AdaBelief optimizer: adapting stepsizes by the belief in observed"
            " gradients",
            2020,
            "https://arxiv.org/abs/2010.07468",
        ),
        defaults={"learning_rate": 1e-3},
        static=("amsgrad", "decoupled", "mask", "rectify", "sgd_start"),
    ),
    Row(
        "diffgrad",
        optimizers.diffgrad,
        "optimizers",
        "adaptive",
        Paper(
            "Dubey et al.",
            "diffGrad: an optimization method for convolutional neural networks",
            2019,
            "https://arxiv.org/abs/1909.11015",
        ),
        defaults={"learning_rate": 1e-3},
        static=("decoupled", "mask"),
    ),
    Row(
        "sgd_sai",
        optimizers.sgd_sai,
        "optimizers",
        "first order",
        Paper(
            "Xu et al.",
            "No more Adam: learning rate scaling at initialization is all you need",
            2024,
            "https://arxiv.org/abs/2412.11768",
        ),
        defaults={"learning_rate": 1e-2},
        static=("mask", "safe"),
        exempt={
            "stacked_equals_separate": "the method has one ratio for each leaf, and a"
            " stack of layers is one leaf"
        },
    ),
)
