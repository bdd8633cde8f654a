"""Rows of functions: what a loop calls itself, in the rooms beside the chains."""

from optlab import aggregation, controllers, estimators
from optlab.catalog._row import Paper, Row

_ROBUST = Paper(
    "Yin et al.",
    "Byzantine-robust distributed learning: towards optimal statistical rates",
    2018,
    "https://arxiv.org/abs/1803.01498",
)
_TRACT = Paper(
    "Petersen et al.",
    "TrAct: making first-layer pre-activations trainable",
    2024,
    "https://arxiv.org/abs/2410.23970",
)
_FREE = Paper(
    "Du et al.",
    "Sharpness-aware training for free",
    2022,
    "https://arxiv.org/abs/2205.14083",
)
_DEEP_ZERO = Paper(
    "Chen et al.",
    "DeepZero: scaling up zeroth-order optimization for deep model training",
    2023,
    "https://arxiv.org/abs/2310.02025",
)

ROWS = (
    *(
        Row(make.__name__, make, "estimators", "zeroth-order", _DEEP_ZERO)
        for make in (
            estimators.coordinatewise_value_and_grad,
            estimators.staged_coordinatewise_value_and_grad,
            estimators.zo_grasp_scores,
            estimators.layerwise_sparsity,
            estimators.random_masks,
        )
    ),
    Row(
        "sharpness_aware_value_and_grad",
        estimators.sharpness_aware_value_and_grad,
        "estimators",
        "two passes",
        Paper(
            "Foret et al.",
            "Sharpness-aware minimization for efficiently improving generalization",
            2020,
            "https://arxiv.org/abs/2010.01412",
        ),
    ),
    Row("saf_loss", estimators.saf_loss, "estimators", "trajectory", _FREE),
    Row(
        "averaged_weights",
        estimators.averaged_weights,
        "estimators",
        "trajectory",
        _FREE,
    ),
    Row("tract_dense", estimators.tract_dense, "estimators", "first layer", _TRACT),
    Row("tract_conv", estimators.tract_conv, "estimators", "first layer", _TRACT),
    Row(
        "private_gradient",
        estimators.private_gradient,
        "estimators",
        "private",
        Paper(
            "Abadi et al.",
            "Deep learning with differential privacy",
            2016,
            "https://arxiv.org/abs/1607.00133",
        ),
    ),
    Row(
        "hutchinson",
        estimators.hutchinson,
        "estimators",
        "curvature",
        Paper(
            "Bekas et al.",
            "An estimator for the diagonal of a matrix",
            2007,
            "https://doi.org/10.1016/j.apnum.2007.01.003",
        ),
    ),
    Row(
        "nearest_neighbor_mean",
        aggregation.nearest_neighbor_mean,
        "aggregation",
        "robust",
        Paper(
            "Farhadkhani et al.",
            "Robust collaborative learning with linear gradient overhead",
            2022,
            "https://arxiv.org/abs/2209.10931",
        ),
    ),
    Row(
        "coordinate_median",
        aggregation.coordinate_median,
        "aggregation",
        "robust",
        _ROBUST,
    ),
    Row("trimmed_mean", aggregation.trimmed_mean, "aggregation", "robust", _ROBUST),
    Row(
        "krum",
        aggregation.krum,
        "aggregation",
        "robust",
        Paper(
            "Blanchard et al.",
            "Machine learning with adversaries: Byzantine tolerant gradient descent",
            2017,
            "https://arxiv.org/abs/1703.02757",
        ),
    ),
    Row(
        "sketch",
        aggregation.sketch,
        "aggregation",
        "compression",
        Paper(
            "Song et al.",
            "Sketching for first order method: efficient algorithm for low-bandwidth"
            " channel and vulnerability",
            2022,
            "https://arxiv.org/abs/2210.08371",
        ),
    ),
    Row(
        "autolrs",
        controllers.autolrs,
        "controllers",
        "rate",
        Paper(
            "Jin et al.",
            "AutoLRS: automatic learning-rate schedule by Bayesian optimization on the"
            " fly",
            2021,
            "https://arxiv.org/abs/2105.10762",
        ),
    ),
)
