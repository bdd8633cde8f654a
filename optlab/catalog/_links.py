"""Rows of links: what stands before the momentum or behind the learning rate."""

from optlab import optimizers
from optlab.catalog._row import Paper, Row

ROWS = (
    Row(
        "centralize_gradients",
        optimizers.centralize_gradients,
        "optimizers",
        "centralization",
        Paper(
            "Yong et al.",
            "Gradient centralization: a new optimization technique for deep neural"
            " networks",
            2020,
            "https://arxiv.org/abs/2004.01461",
        ),
        static=("channel_axis", "mask", "views"),
        link="first",
    ),
)
