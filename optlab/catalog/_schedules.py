"""Rows of the schedules."""

from optlab import schedules
from optlab.catalog._row import Paper, Row

ROWS = (
    Row(
        "constant",
        schedules.constant,
        "schedules",
        "constant",
        Paper(
            "Robbins, Monro",
            "A stochastic approximation method",
            1951,
            "https://doi.org/10.1214/aoms/1177729586",
        ),
        defaults={"peak": 1e-3, "warmup_steps": 50},
    ),
    Row(
        "cosine",
        schedules.cosine,
        "schedules",
        "budgeted",
        Paper(
            "Loshchilov, Hutter",
            "SGDR: stochastic gradient descent with warm restarts",
            2016,
            "https://arxiv.org/abs/1608.03983",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "linear",
        schedules.linear,
        "schedules",
        "budgeted",
        Paper(
            "Defazio et al.",
            "When, why and how much? Adaptive learning rate scheduling by refinement",
            2023,
            "https://arxiv.org/abs/2310.07831",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "polynomial",
        schedules.polynomial,
        "schedules",
        "budgeted",
        Paper(
            "Liu et al.",
            "ParseNet: looking wider to see better",
            2015,
            "https://arxiv.org/abs/1506.04579",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50, "power": 2.0},
    ),
    Row(
        "rex",
        schedules.rex,
        "schedules",
        "budgeted",
        Paper(
            "Chen et al.",
            "REX: revisiting budgeted training with an improved schedule",
            2021,
            "https://arxiv.org/abs/2107.04197",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "uba",
        schedules.uba,
        "schedules",
        "budgeted",
        Paper(
            "Tang et al.",
            "Stepsize anything: a unified learning rate schedule for"
            " budgeted-iteration training",
            2025,
            "https://arxiv.org/abs/2505.24452",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "cosine_power",
        schedules.cosine_power,
        "schedules",
        "budgeted",
        Paper(
            "Hundt et al.",
            "sharpDARTS: faster and more accurate differentiable architecture search",
            2019,
            "https://arxiv.org/abs/1903.09900",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "exponential",
        schedules.exponential,
        "schedules",
        "budgeted",
        Paper(
            "Senior et al.",
            "An empirical study of learning rates in deep neural networks for"
            " speech recognition",
            2013,
            "https://doi.org/10.1109/ICASSP.2013.6638963",
        ),
        defaults={
            "peak": 1e-3,
            "total_steps": 1000,
            "end_value": 1e-5,
            "warmup_steps": 50,
        },
    ),
    Row(
        "step_decay",
        schedules.step_decay,
        "schedules",
        "steps",
        Paper(
            "He et al.",
            "Deep residual learning for image recognition",
            2015,
            "https://arxiv.org/abs/1512.03385",
        ),
        defaults={"peak": 1e-3, "boundaries": (500, 750), "warmup_steps": 50},
    ),
    Row(
        "thirty_sixty_ninety",
        schedules.thirty_sixty_ninety,
        "schedules",
        "steps",
        Paper(
            "He et al.",
            "Deep residual learning for image recognition",
            2015,
            "https://arxiv.org/abs/1512.03385",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000, "warmup_steps": 50},
    ),
    Row(
        "one_cycle",
        schedules.one_cycle,
        "schedules",
        "budgeted",
        Paper(
            "Smith, Topin",
            "Super-convergence: very fast training of neural networks using"
            " large learning rates",
            2017,
            "https://arxiv.org/abs/1708.07120",
        ),
        defaults={"peak": 1e-3, "total_steps": 1000},
    ),
    Row(
        "sampled",
        schedules.sampled,
        "schedules",
        "given",
        Paper(
            "Chen et al.",
            "REX: revisiting budgeted training with an improved schedule",
            2021,
            "https://arxiv.org/abs/2107.04197",
        ),
        defaults={"profile": schedules.linear(1e-3, total_steps=1000), "points": 100},
    ),
    Row(
        "table",
        schedules.table,
        "schedules",
        "given",
        Paper(
            "Defazio et al.",
            "When, why and how much? Adaptive learning rate scheduling by refinement",
            2023,
            "https://arxiv.org/abs/2310.07831",
        ),
        defaults={"values": (0.0, 1e-3, 0.0), "steps": (0, 50, 1000)},
    ),
    Row(
        "inverse_sqrt",
        schedules.inverse_sqrt,
        "schedules",
        "open-ended",
        Paper(
            "Vaswani et al.",
            "Attention is all you need",
            2017,
            "https://arxiv.org/abs/1706.03762",
        ),
        defaults={"peak": 1e-3, "warmup_steps": 50},
    ),
    Row(
        "power",
        schedules.power,
        "schedules",
        "open-ended",
        Paper(
            "Shen et al.",
            "Power scheduler: a batch size and token number agnostic learning"
            " rate scheduler",
            2024,
            "https://arxiv.org/abs/2408.13359",
        ),
        defaults={
            "peak": 0.02,
            "tokens_per_step": 8192,
            "batch_size": 128,
            "warmup_steps": 50,
        },
    ),
    Row(
        "wsd",
        schedules.wsd,
        "schedules",
        "open-ended",
        Paper(
            "Hu et al.",
            "MiniCPM: unveiling the potential of small language models",
            2024,
            "https://arxiv.org/abs/2404.06395",
        ),
        defaults={
            "peak": 1e-3,
            "total_steps": 1000,
            "decay_steps": 200,
            "warmup_steps": 50,
        },
    ),
)
