"""Rows of the optimizers that measure curvature."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

_WITH_BIAS = (
    "a kernel and its bias are one matrix: they are routed, and spoilt, together"
)
_ONE_MATRIX = "one matrix covers all leaves, so all updates depend on all gradients"
_NEEDS_NOISE = (
    "exact gradients are nearly parallel, and what is new in each is multiplied by up"
    " to sqrt(window / damping): the method is for gradients of batches"
)

_OF_LAYERS = {
    "masked": _WITH_BIAS,
    "nonfinite_stays_in_its_leaf": _WITH_BIAS,
    "partition": _WITH_BIAS,
}
_MKOR = Paper(
    "Mozaffari et al.",
    "MKOR: momentum-enabled Kronecker-factor-based optimizer using rank-1 updates",
    2023,
    "https://arxiv.org/abs/2306.01685",
)

ROWS: tuple[Row, ...] = (
    Row(
        "mfac",
        optimizers.mfac,
        "optimizers",
        "curvature",
        Paper(
            "Frantar et al.",
            "M-FAC: efficient matrix-free approximations of second-order information",
            2021,
            "https://arxiv.org/abs/2107.03356",
        ),
        defaults={"learning_rate": 0.1, "window": 32, "damping": 0.1},
        static=("accumulator_dtype", "flat", "mask", "window"),
        exempt={
            "descends_quadratic": _NEEDS_NOISE,
            "descends_rosenbrock": _NEEDS_NOISE,
            "nonfinite_stays_in_its_leaf": _ONE_MATRIX,
        },
    ),
    Row(
        "adahessian",
        optimizers.adahessian,
        "optimizers",
        "curvature",
        Paper(
            "Yao et al.",
            "AdaHessian: an adaptive second order optimizer for machine learning",
            2020,
            "https://arxiv.org/abs/2006.00719",
        ),
        needs=("hessian_diag",),
        defaults={"learning_rate": 0.15},
        static=(
            *("abs_before_average", "accumulator_dtype", "average", "every", "mask"),
            "views",
        ),
    ),
    Row(
        "sophia",
        optimizers.sophia,
        "optimizers",
        "curvature",
        Paper(
            "Liu et al.",
            "Sophia: a scalable stochastic second-order optimizer for language model"
            " pre-training",
            2023,
            "https://arxiv.org/abs/2305.14342",
        ),
        needs=("hessian_diag",),
        defaults={"learning_rate": 1e-3},
        static=("every", "mask"),
    ),
    Row(
        "mkor",
        optimizers.mkor,
        "optimizers",
        "curvature",
        _MKOR,
        needs=("layer_stats",),
        defaults={"learning_rate": 0.1, "every": 1},
        static=("every", "mask", "rule", "stabilizer", "views", "warmup_steps"),
        exempt=_OF_LAYERS,
    ),
    Row(
        "mkor_h",
        optimizers.mkor_h,
        "optimizers",
        "curvature",
        _MKOR,
        needs=("layer_stats", "value"),
        defaults={
            "learning_rate": 0.1,
            "preconditioner": optimizers.scale_by_mkor(every=1),
        },
        static=("mask", "min_steps", "patience", "preconditioner"),
        exempt=_OF_LAYERS,
    ),
    Row(
        "kfac",
        optimizers.kfac,
        "optimizers",
        "curvature",
        Paper(
            "Martens, Grosse",
            "Optimizing neural networks with Kronecker-factored approximate curvature",
            2015,
            "https://arxiv.org/abs/1503.05671",
        ),
        needs=("layer_stats",),
        defaults={"learning_rate": 0.01, "every": 2},
        static=("every", "mask", "method", "views"),
        exempt=_OF_LAYERS,
    ),
)
