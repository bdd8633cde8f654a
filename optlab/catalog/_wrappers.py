"""Rows of the wrappers, each around an inner transformation of its own."""

import optax

from optlab import wrappers
from optlab.catalog._row import Paper, Row

_OWN_RATE = "the method makes its own rate and takes no schedule"

_DRAWN = "each step draws one of the matrices that it sees"

_WHOLE_LOSS = "the loss is one of all parameters, and some are hidden from it"

_INNER_RATE = {
    promise: "the rate is the inner transformation's"
    for promise in (
        "schedule_equals_constant",
        "schedule_counts_from_zero",
        "learning_rate_is_readable",
    )
}

ROWS = (
    Row(
        "hypergradient",
        wrappers.hypergradient,
        "wrappers",
        "hypergradient",
        Paper(
            "Baydin et al.",
            "Online learning rate adaptation with hypergradient descent",
            2017,
            "https://arxiv.org/abs/1703.04782",
        ),
        defaults={
            "inner": optax.scale_by_adam(),
            "learning_rate": 1e-3,
            "hyper_learning_rate": 1e-6,
        },
        static=("bounds", "inner", "rule"),
        exempt={
            "schedule_equals_constant": _OWN_RATE,
            "schedule_counts_from_zero": _OWN_RATE,
            "learning_rate_is_readable": "the rate leaves the number it starts from",
        },
    ),
    Row(
        "project_scale_invariant",
        wrappers.project_scale_invariant,
        "wrappers",
        "projection",
        Paper(
            "Heo et al.",
            "AdamP: slowing down the slowdown for momentum optimizers on"
            " scale-invariant weights",
            2020,
            "https://arxiv.org/abs/2006.08217",
        ),
        defaults={"inner": optax.adam(1e-2)},
        static=("channel_axis", "inner", "mask", "views"),
        exempt=_INNER_RATE,
    ),
    Row(
        "cautious",
        wrappers.cautious,
        "wrappers",
        "masking",
        Paper(
            "Liang et al.",
            "Cautious optimizers: improving training with one line of code",
            2024,
            "https://arxiv.org/abs/2411.16085",
        ),
        defaults={"inner": optax.adam(1e-2), "downhill": True},
        static=("downhill", "inner"),
        exempt={
            **_INNER_RATE,
            "stacked_equals_separate": "the share of entries is that of a leaf, as in"
            " the paper, and a stack of layers is one leaf",
        },
    ),
    Row(
        "mechanic",
        wrappers.mechanic,
        "wrappers",
        "tuning free",
        Paper(
            "Cutkosky, Defazio, Mehta",
            "Mechanic: a learning rate tuner",
            2023,
            "https://arxiv.org/abs/2306.00144",
        ),
        defaults={"inner": optax.adam(1.0)},
        static=("decays", "inner"),
        exempt=_INNER_RATE,
    ),
    Row(
        "sharpness_aware",
        wrappers.sharpness_aware,
        "wrappers",
        "sharpness",
        Paper(
            "Foret et al.",
            "Sharpness-aware minimization for efficiently improving generalization",
            2020,
            "https://arxiv.org/abs/2010.01412",
        ),
        needs=("loss_fn",),
        defaults={"inner": optax.adam(1e-2)},
        static=("adaptive", "inner"),
        exempt={
            **_INNER_RATE,
            **dict.fromkeys(("masked", "partition"), _WHOLE_LOSS),
            "multi_steps": "the loss of an update is that of its last micro-batch",
        },
    ),
    Row(
        "sparse_finetuning",
        wrappers.sparse_finetuning,
        "wrappers",
        "sparse",
        Paper(
            "Hu et al.",
            "SaRA: high-efficient diffusion model fine-tuning with progressive sparse"
            " low-rank adaptation",
            2024,
            "https://arxiv.org/abs/2409.06633",
        ),
        # For weights of size 1, a second choice soon, and matrices of any size.
        defaults={
            "inner": optax.adamw(1e-2, weight_decay=0.1),
            "threshold": 1.0,
            "progressive_iter": 2,
            "lambda_rank": 0.1,
            "min_side": 0,
        },
        static=(
            *("inner", "key", "min_side", "orthogonalize", "progressive_iter"),
            "views",
        ),
        exempt={
            **_INNER_RATE,
            **dict.fromkeys(("masked", "partition"), _DRAWN),
        },
    ),
    Row(
        "state_precision",
        wrappers.state_precision,
        "wrappers",
        "precision",
        Paper(
            "Dettmers et al.",
            "8-bit optimizers via block-wise quantization",
            2021,
            "https://arxiv.org/abs/2110.02861",
        ),
        # Arrays on both sides of the least size, and no chance: so each promise tests
        # the format.
        defaults={
            "inner": optax.adam(1e-2),
            "stored": "8bit",
            "rounding": "nearest",
            "min_size": 24,
        },
        static=("block_size", "inner", "key", "min_size", "rounding", "stored"),
        exempt=_INNER_RATE,
    ),
    Row(
        "stochastic_rounding",
        wrappers.stochastic_rounding,
        "wrappers",
        "precision",
        Paper(
            "Zamirai et al.",
            "Revisiting BFloat16 Training",
            2020,
            "https://arxiv.org/abs/2010.06192",
        ),
        defaults={"inner": optax.adam(1e-2)},
        static=("inner", "key"),
        exempt={
            **_INNER_RATE,
            "hyperparameters_keep_precision": "a parameter in bfloat16 moves by whole"
            " units in its last place, in float32 by the update itself",
        },
    ),
)
