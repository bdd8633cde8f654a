"""Rows of the first-order optimizers with one number for each layer."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

ROWS = (
    Row(
        "lamb",
        optimizers.lamb,
        "optimizers",
        "adaptive",
        Paper(
            "You et al.",
            "Large batch optimization for deep learning: training BERT in 76 minutes",
            2019,
            "https://arxiv.org/abs/1904.00962",
        ),
        defaults={"learning_rate": 1e-2},
        static=(
            "mask",
            "views",
        ),
    ),
    Row(
        "lars",
        optimizers.lars,
        "optimizers",
        "first order",
        Paper(
            "You et al.",
            "Large batch training of convolutional networks",
            2017,
            "https://arxiv.org/abs/1708.03888",
        ),
        defaults={"learning_rate": 1.0},
        static=(
            "mask",
            "nesterov",
            "views",
        ),
    ),
    Row(
        "adafactor",
        optimizers.adafactor,
        "optimizers",
        "low memory",
        Paper(
            "Shazeer, Stern",
            "Adafactor: adaptive learning rates with sublinear memory cost",
            2018,
            "https://arxiv.org/abs/1804.04235",
        ),
        defaults={"learning_rate": 1e-2},
        static=("b1", "mask", "max_rms", "min_scale", "min_size", "views"),
    ),
    Row(
        "novograd",
        optimizers.novograd,
        "optimizers",
        "adaptive",
        Paper(
            "Ginsburg et al.",
            "Stochastic gradient methods with layer-wise adaptive moments for training"
            " of deep networks",
            2019,
            "https://arxiv.org/abs/1905.11286",
        ),
        defaults={"learning_rate": 1e-2},
        static=("mask", "views"),
    ),
)
