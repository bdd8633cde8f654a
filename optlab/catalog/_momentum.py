"""Rows of momentum with its constants, and of methods made for games and regret."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

ROWS = (
    Row(
        "triple_momentum",
        optimizers.triple_momentum,
        "optimizers",
        "momentum",
        Paper(
            "Van Scoy et al.",
            "The fastest known globally convergent first-order method for minimizing"
            " strongly convex functions",
            2018,
            "https://doi.org/10.1109/LCSYS.2017.2722406",
        ),
        defaults={"learning_rate": 0.1},
        eval_params=optimizers.triple_momentum_eval_params,
    ),
    Row(
        "optimistic_mirror_descent",
        optimizers.optimistic_mirror_descent,
        "optimizers",
        "online",
        Paper(
            "Chen et al.",
            "Optimistic online mirror descent for bridging stochastic and adversarial"
            " online convex optimization",
            2023,
            "https://arxiv.org/abs/2302.04552",
        ),
        defaults={"learning_rate": 0.1},
        static=("axis", "mirror", "projection"),
        exempt={
            "schedule_counts_from_zero": "a play is made at the rate of the step to"
            " come, so an update takes the schedule at two counts"
        },
    ),
    Row(
        "normalized_logistic",
        optimizers.normalized_logistic,
        "optimizers",
        "online",
        Paper(
            "Tyurin",
            "From logistic regression to the perceptron algorithm: exploring gradient"
            " descent with large step sizes",
            2024,
            "https://arxiv.org/abs/2412.08424",
        ),
        needs=("logit_grad_l1",),
        defaults={"learning_rate": 0.1},
    ),
)
