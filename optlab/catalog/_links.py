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
    Row(
        "clip_coordinates",
        optimizers.clip_coordinates,
        "optimizers",
        "clipping",
        Paper(
            "Pan, Li",
            "Toward understanding why Adam converges faster than SGD for transformers",
            2023,
            "https://arxiv.org/abs/2306.00204",
        ),
        defaults={"fraction": 0.1},
        static=("fraction", "mask", "per"),
        exempt={
            "sends_no_more_for_more_layers": "each bit of a threshold is a count over"
            " the mesh, in a loop",
            "stacked_equals_separate": "the share of entries is that of a leaf, and a"
            " stack of layers is one leaf",
        },
        link="first",
    ),
    Row(
        "denoise_subspace",
        optimizers.denoise_subspace,
        "optimizers",
        "projection",
        Paper(
            "Seo et al.",
            "Efficient personalization of quantized diffusion model without"
            " backpropagation",
            2025,
            "https://arxiv.org/abs/2503.14868",
        ),
        # So small that four steps see a projection.
        defaults={"window": 3, "nu": 0.5},
        static=("mask", "mode", "window"),
        link="first",
    ),
    Row(
        "normalize_and_project",
        optimizers.normalize_and_project,
        "optimizers",
        "projection",
        Paper(
            "Lyle et al.",
            "Normalization and effective learning rates in reinforcement learning",
            2024,
            "https://arxiv.org/abs/2407.01800",
        ),
        static=("every", "mask", "views"),
        exempt={
            "descends_quadratic": "kernels keep their norm, and the minimum is at zero"
        },
        link="last",
    ),
    Row(
        "qk_clip",
        optimizers.qk_clip,
        "optimizers",
        "clipping",
        Paper(
            "Kimi Team",
            "Kimi K2: open agentic intelligence",
            2025,
            "https://arxiv.org/abs/2507.20534",
        ),
        needs=("attn_max_logit",),
        defaults={"threshold": 100.0},
        static=("key", "query"),
        exempt={
            "schedule_counts_from_zero": "weights are scaled down at any rate, by what"
            " depends on where earlier rates led"
        },
        link="last",
    ),
)
