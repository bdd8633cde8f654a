"""Rows of adaptive optimizers, most of which Optax has too."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

ROWS = (
    Row(
        "yogi",
        optimizers.yogi,
        "optimizers",
        "adaptive",
        Paper(
            "Zaheer et al.",
            "Adaptive methods for nonconvex optimization",
            2018,
            "https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization",
        ),
        defaults={"learning_rate": 1e-2},
        static=("mask",),
    ),
    Row(
        "ademamix",
        optimizers.ademamix,
        "optimizers",
        "adaptive",
        Paper(
            "Pagliardini et al.",
            "The AdEMAMix optimizer: better, faster, older",
            2024,
            "https://arxiv.org/abs/2409.03137",
        ),
        defaults={"learning_rate": 1e-3},
        static=("alpha_warmup_steps", "b3_warmup_steps", "mask"),
    ),
    Row(
        "adopt",
        optimizers.adopt,
        "optimizers",
        "adaptive",
        Paper(
            "Taniguchi et al.",
            "ADOPT: modified Adam can converge with any b2 with the optimal rate",
            2024,
            "https://arxiv.org/abs/2411.02853",
        ),
        defaults={"learning_rate": 1e-3},
        static=("clip", "mask"),
    ),
    Row(
        "radam",
        optimizers.radam,
        "optimizers",
        "adaptive",
        Paper(
            "Liu et al.",
            "On the variance of the adaptive learning rate and beyond",
            2019,
            "https://arxiv.org/abs/1908.03265",
        ),
        defaults={"learning_rate": 1e-3},
        static=("mask", "sgd_start"),
    ),
    Row(
        "rmsprop",
        optimizers.rmsprop,
        "optimizers",
        "adaptive",
        Paper(
            "Tieleman, Hinton",
            "Neural networks for machine learning, lecture 6.5",
            2012,
            "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
        ),
        defaults={"learning_rate": 1e-3},
        static=(
            "centered",
            "mask",
            "momentum",
            "nesterov",
        ),
    ),
    Row(
        "adagrad",
        optimizers.adagrad,
        "optimizers",
        "adaptive",
        Paper(
            "Duchi et al.",
            "Adaptive subgradient methods for online learning and stochastic"
            " optimization",
            2011,
            "https://jmlr.org/papers/v12/duchi11a.html",
        ),
        defaults={"learning_rate": 1e-1},
        static=("mask",),
    ),
    Row(
        "adagrad_norm",
        optimizers.adagrad_norm,
        "optimizers",
        "adaptive",
        Paper(
            "Ward, Wu, Bottou",
            "AdaGrad stepsizes: sharp convergence over nonconvex landscapes",
            2018,
            "https://arxiv.org/abs/1806.01811",
        ),
        defaults={"learning_rate": 1.0},
        static=("mask",),
        exempt={
            "nonfinite_stays_in_its_leaf": "one length of the gradient, that of the"
            " whole tree, sets all steps"
        },
    ),
    Row(
        "amsgrad",
        optimizers.amsgrad,
        "optimizers",
        "adaptive",
        Paper(
            "Reddi et al.",
            "On the convergence of Adam and beyond",
            2018,
            "https://arxiv.org/abs/1904.09237",
        ),
        defaults={"learning_rate": 1e-3},
        static=("bias_correction", "mask"),
    ),
    Row(
        "adamax",
        optimizers.adamax,
        "optimizers",
        "adaptive",
        Paper(
            "Kingma, Ba",
            "Adam: a method for stochastic optimization",
            2014,
            "https://arxiv.org/abs/1412.6980",
        ),
        defaults={"learning_rate": 2e-3},
        static=("mask",),
    ),
    Row(
        "simplified_ademamix",
        optimizers.simplified_ademamix,
        "optimizers",
        "adaptive",
        Paper(
            "Morwani et al.",
            "Connections between schedule-free optimizers, AdEMAMix, and accelerated"
            " SGD variants",
            2025,
            "https://arxiv.org/abs/2502.02431",
        ),
        defaults={"learning_rate": 1e-4},
        static=("mask",),
    ),
    Row(
        "signum",
        optimizers.signum,
        "optimizers",
        "sign",
        Paper(
            "Bernstein et al.",
            "signSGD: compressed optimisation for non-convex problems",
            2018,
            "https://arxiv.org/abs/1802.04434",
        ),
        defaults={"learning_rate": 1e-4},
        static=("mask",),
    ),
)
