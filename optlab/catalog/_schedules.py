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
        defaults={"peak": 1e-3},
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
