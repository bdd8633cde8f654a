"""Rows of the methods that set their own rate, or need no schedule."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

_FACTOR = 1.0  # of a rate that the method finds itself

_SCHEDULE_FREE = Paper(
    "Defazio et al.",
    "The road less scheduled",
    2024,
    "https://arxiv.org/abs/2405.15682",
)

_AVERAGES_GO_ON = {
    "schedule_counts_from_zero": "at a rate of zero the parameters go on towards the"
    " average of the steps before"
}

_DADAPTATION = Paper(
    "Defazio, Mishchenko",
    "Learning-rate-free learning by D-Adaptation",
    2023,
    "https://arxiv.org/abs/2301.07733",
)

_DOG = Paper(
    "Ivgi, Hinder, Carmon",
    "DoG is SGD's best friend: a parameter-free dynamic step size schedule",
    2023,
    "https://arxiv.org/abs/2302.12022",
)

_ONE_LENGTH = {
    "nonfinite_stays_in_its_leaf": "one length of the gradient, that of the whole tree,"
    " sets all steps",
    **dict.fromkeys(
        ("masked", "partition"),
        "the first distance goes by the length of all parameters, and some are hidden",
    ),
}

_MOMO = Paper(
    "Schaipp et al.",
    "MoMo: momentum models for adaptive learning rates",
    2023,
    "https://arxiv.org/abs/2305.07583",
)

_ONE_LOSS = {
    "nonfinite_stays_in_its_leaf": "one step size, that of the whole tree, is unknown",
    **dict.fromkeys(
        ("masked", "partition"),
        "the loss is one of all parameters, and some are hidden",
    ),
    "multi_steps": "the loss of an update is that of its last micro-batch",
}

ROWS = (
    Row(
        "prodigy",
        optimizers.prodigy,
        "optimizers",
        "tuning free",
        Paper(
            "Mishchenko, Defazio",
            "Prodigy: an expeditiously adaptive parameter-free learner",
            2023,
            "https://arxiv.org/abs/2306.06101",
        ),
        defaults={"learning_rate": _FACTOR},
        static=("bias_correction", "decoupled", "mask", "safeguard_warmup", "slice_p"),
    ),
    Row(
        "dadapt_adam",
        optimizers.dadapt_adam,
        "optimizers",
        "tuning free",
        _DADAPTATION,
        defaults={"learning_rate": _FACTOR},
        static=("bias_correction", "decoupled", "mask"),
    ),
    Row(
        "dadapt_sgd",
        optimizers.dadapt_sgd,
        "optimizers",
        "tuning free",
        _DADAPTATION,
        defaults={"learning_rate": _FACTOR, "momentum": 0.9},
        static=("mask",),
        exempt={
            "nonfinite_stays_in_its_leaf": "the first gradient's norm, which divides"
            " all steps, is that of the whole tree"
        },
    ),
    Row(
        "dadapt_adan",
        optimizers.dadapt_adan,
        "optimizers",
        "tuning free",
        _DADAPTATION,
        defaults={"learning_rate": _FACTOR},
        static=("decay_order", "mask"),
    ),
    Row(
        "dadapt_lion",
        optimizers.dadapt_lion,
        "optimizers",
        "tuning free",
        _DADAPTATION,
        defaults={"learning_rate": _FACTOR},
        static=("mask",),
    ),
    Row(
        "dog",
        optimizers.dog,
        "optimizers",
        "tuning free",
        _DOG,
        defaults={"learning_rate": _FACTOR},
        static=("mask",),
        eval_params=optimizers.dog_params,
        exempt=_ONE_LENGTH,
    ),
    Row(
        "ldog",
        optimizers.ldog,
        "optimizers",
        "tuning free",
        _DOG,
        defaults={"learning_rate": _FACTOR},
        static=("mask", "views"),
        eval_params=optimizers.dog_params,
    ),
    Row(
        "dowg",
        optimizers.dowg,
        "optimizers",
        "tuning free",
        Paper(
            "Khaled, Mishchenko, Jin",
            "DoWG unleashed: an efficient universal parameter-free gradient descent"
            " method",
            2023,
            "https://arxiv.org/abs/2305.16284",
        ),
        defaults={"learning_rate": _FACTOR},
        static=("mask",),
        exempt=_ONE_LENGTH,
    ),
    Row(
        "momo",
        optimizers.momo,
        "optimizers",
        "tuning free",
        _MOMO,
        needs=("value",),
        defaults={"learning_rate": 1.0},
        static=("adapt_lower_bound", "bias_correction"),
        exempt=_ONE_LOSS,
    ),
    Row(
        "momo_adam",
        optimizers.momo_adam,
        "optimizers",
        "tuning free",
        _MOMO,
        needs=("value",),
        defaults={"learning_rate": 1e-2},
        static=("adapt_lower_bound",),
        exempt=_ONE_LOSS,
    ),
    Row(
        "schedule_free_sgd",
        optimizers.schedule_free_sgd,
        "optimizers",
        "schedule free",
        _SCHEDULE_FREE,
        defaults={"learning_rate": 1.0},
        static=("decay_at", "mask"),
        eval_params=optimizers.schedule_free_params,
        exempt=_AVERAGES_GO_ON,
    ),
    Row(
        "schedule_free_adamw",
        optimizers.schedule_free_adamw,
        "optimizers",
        "schedule free",
        _SCHEDULE_FREE,
        defaults={"learning_rate": 2.5e-3},
        static=("decay_at", "mask"),
        eval_params=optimizers.schedule_free_params,
        exempt=_AVERAGES_GO_ON,
    ),
)
