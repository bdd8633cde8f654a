"""Rows of functions: what a loop calls itself, in the rooms beside the chains."""

from collections.abc import Callable
from typing import Any

from optlab import aggregation, controllers, estimators, probes, solvers
from optlab.catalog._row import Paper, Row


def _rows(family: str, paper: Paper, *functions: Callable[..., Any]) -> list[Row]:
    """Makes the rows of the functions that one paper is the source of."""
    rooms = [function.__module__.split(".")[1] for function in functions]
    named = zip(functions, rooms, strict=True)
    return [Row(make.__name__, make, room, family, paper) for make, room in named]


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


_ESTIMATORS = (
    *_rows(
        "two passes",
        Paper(
            "Foret et al.",
            "Sharpness-aware minimization for efficiently improving generalization",
            2020,
            _arxiv("2010.01412"),
        ),
        estimators.sharpness_aware_value_and_grad,
    ),
    *_rows(
        "trajectory",
        Paper(
            "Du et al.", "Sharpness-aware training for free", 2022, _arxiv("2205.14083")
        ),
        estimators.saf_loss,
        estimators.averaged_weights,
    ),
    *_rows(
        "first layer",
        Paper(
            "Petersen et al.",
            "TrAct: making first-layer pre-activations trainable",
            2024,
            _arxiv("2410.23970"),
        ),
        estimators.tract_dense,
        estimators.tract_conv,
    ),
    *_rows(
        "private",
        Paper(
            "Abadi et al.",
            "Deep learning with differential privacy",
            2016,
            _arxiv("1607.00133"),
        ),
        estimators.private_gradient,
        estimators.poisson_batch,
    ),
    *_rows(
        "zeroth-order",
        Paper(
            "Spall",
            "Multivariate stochastic approximation using a simultaneous perturbation"
            " gradient approximation",
            1992,
            "https://doi.org/10.1109/9.119632",
        ),
        estimators.spsa_value_and_grad,
    ),
    *_rows(
        "zeroth-order",
        Paper(
            "Chen et al.",
            "DeepZero: scaling up zeroth-order optimization for deep model training",
            2023,
            _arxiv("2310.02025"),
        ),
        estimators.coordinatewise_value_and_grad,
        estimators.staged_coordinatewise_value_and_grad,
        estimators.zo_grasp_scores,
        estimators.layerwise_sparsity,
        estimators.random_masks,
    ),
    *_rows(
        "curvature",
        Paper(
            "Bekas et al.",
            "An estimator for the diagonal of a matrix",
            2007,
            "https://doi.org/10.1016/j.apnum.2007.01.003",
        ),
        estimators.hutchinson,
    ),
    *_rows(
        "curvature",
        Paper(
            "Pearlmutter",
            "Fast exact multiplication by the Hessian",
            1994,
            "https://doi.org/10.1162/neco.1994.6.1.147",
        ),
        estimators.hessian_product,
    ),
    *_rows(
        "curvature",
        Paper(
            "Schraudolph",
            "Fast curvature matrix-vector products for second-order gradient descent",
            2002,
            "https://doi.org/10.1162/08997660260028683",
        ),
        estimators.gauss_newton_product,
    ),
    *_rows(
        "bilevel",
        Paper(
            "Pedregosa",
            "Hyperparameter optimization with approximate gradient",
            2016,
            _arxiv("1602.02355"),
        ),
        estimators.implicit_hypergradient,
    ),
    *_rows(
        "bilevel",
        Paper(
            "Kwon et al.",
            "On penalty methods for nonconvex bilevel optimization and first-order"
            " stochastic approximation",
            2023,
            _arxiv("2309.01753"),
        ),
        estimators.penalty_hypergradient,
        solvers.penalty_bilevel,
    ),
)

_SOLVERS = (
    *_rows(
        "zeroth-order",
        Paper(
            "Malladi et al.",
            "Fine-tuning language models with just forward passes",
            2023,
            _arxiv("2305.17333"),
        ),
        solvers.mezo,
    ),
    *_rows(
        "zeroth-order",
        Paper(
            "Wang et al.",
            "ZO2: scalable zeroth-order fine-tuning for extremely large language models"
            " with limited GPU memory",
            2025,
            _arxiv("2503.12668"),
        ),
        solvers.zo2,
    ),
)

_PROBES = (
    *_rows(
        "spectrum",
        Paper(
            "Lanczos",
            "An iteration method for the solution of the eigenvalue problem of linear"
            " differential and integral operators",
            1950,
            "https://doi.org/10.6028/jres.045.026",
        ),
        probes.top_eigenpairs,
    ),
    *_rows(
        "spectrum",
        Paper(
            "Ghorbani et al.",
            "An investigation into neural net optimization via Hessian eigenvalue"
            " density",
            2019,
            _arxiv("1901.10159"),
        ),
        probes.spectral_density,
    ),
    *_rows(
        "spectrum",
        Paper(
            "Hutchinson",
            "A stochastic estimator of the trace of the influence matrix",
            1990,
            "https://doi.org/10.1080/03610919008812866",
        ),
        probes.trace,
    ),
    *_rows(
        "sharpness",
        Paper(
            "Cohen et al.",
            "Gradient descent on neural networks typically occurs at the edge of"
            " stability",
            2021,
            _arxiv("2103.00065"),
        ),
        probes.stability_threshold,
        probes.record_curvature,
    ),
    *_rows(
        "sharpness",
        Paper(
            "Pan, Li",
            "Toward understanding why Adam converges faster than SGD for transformers",
            2023,
            _arxiv("2306.00204"),
        ),
        probes.directional_sharpness,
    ),
    *_rows(
        "noise",
        Paper(
            "McCandlish et al.",
            "An empirical model of large-batch training",
            2018,
            _arxiv("1812.06162"),
        ),
        probes.gradient_noise_scale,
        probes.record_noise_scale,
    ),
    *_rows(
        "examples",
        Paper(
            "Rosenfeld, Risteski",
            "Outliers with opposing signals have an outsized effect on neural network"
            " optimization",
            2023,
            _arxiv("2311.04163"),
        ),
        probes.example_changes,
    ),
)

_AGGREGATION = (
    *_rows(
        "robust",
        Paper(
            "Farhadkhani et al.",
            "Robust collaborative learning with linear gradient overhead",
            2022,
            _arxiv("2209.10931"),
        ),
        aggregation.nearest_neighbor_mean,
    ),
    *_rows(
        "robust",
        Paper(
            "Yin et al.",
            "Byzantine-robust distributed learning: towards optimal statistical rates",
            2018,
            _arxiv("1803.01498"),
        ),
        aggregation.coordinate_median,
        aggregation.trimmed_mean,
    ),
    *_rows(
        "robust",
        Paper(
            "Blanchard et al.",
            "Machine learning with adversaries: Byzantine tolerant gradient descent",
            2017,
            _arxiv("1703.02757"),
        ),
        aggregation.krum,
    ),
    *_rows(
        "compression",
        Paper(
            "Song et al.",
            "Sketching for first order method: efficient algorithm for low-bandwidth"
            " channel and vulnerability",
            2022,
            _arxiv("2210.08371"),
        ),
        aggregation.sketch,
    ),
)

_CONTROLLERS = (
    *_rows(
        "batch size",
        Paper(
            "Lau et al.",
            "AdAdaGrad: adaptive batch size schemes for adaptive gradient methods",
            2024,
            _arxiv("2402.11215"),
        ),
        controllers.batch_size,
        estimators.gradient_statistics,
    ),
    *_rows(
        "batch size",
        Paper(
            "Byrd et al.",
            "Sample size selection in optimization methods for machine learning",
            2012,
            "https://doi.org/10.1007/s10107-012-0572-5",
        ),
        controllers.norm_test,
    ),
    *_rows(
        "batch size",
        Paper(
            "Bollapragada et al.",
            "Adaptive sampling strategies for stochastic optimization",
            2017,
            _arxiv("1710.11258"),
        ),
        controllers.inner_product_test,
        controllers.augmented_test,
    ),
    *_rows(
        "rate",
        Paper(
            "Granziol et al.",
            "Learning rates as a function of batch size: a random matrix theory"
            " approach to neural network training",
            2020,
            _arxiv("2006.09092"),
        ),
        controllers.heavy_ball,
    ),
    *_rows(
        "rate",
        Paper(
            "Jin et al.",
            "AutoLRS: automatic learning-rate schedule by Bayesian optimization on the"
            " fly",
            2021,
            _arxiv("2105.10762"),
        ),
        controllers.autolrs,
    ),
)

ROWS = (*_ESTIMATORS, *_SOLVERS, *_PROBES, *_AGGREGATION, *_CONTROLLERS)
