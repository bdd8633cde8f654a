"""GaLore's AdamW, with the recorded singular vectors in the place of our own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import optimizers, trees
from tests.golden.adapters import low_memory_adam
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings

# A matrix is (out, in) there: their columns, on the right of it, are its fan-in.
SIDES = {
    "std": "short",
    "reverse_std": "long",
    "left": "out",
    "right": "in",
    "full": "both",
}


def views(case: Case) -> dict[str, trees.MatrixView | None]:
    """Reads the parameters with two axes as (out, in) matrices."""
    return {
        name: trees.MatrixView((1,), (0,)) if x.ndim == 2 else None
        for name, x in case.init.items()
    }


def recorded_basis(grads: Mapping[str, np.ndarray], recorded: Mapping[str, Any]) -> Any:
    """Makes the kernel that knows a recorded gradient and gives the basis in use then.

    Args:
      grads: Gradients (steps, out, in) by name.
      recorded: By name the bases of fan-in and fan-out, (steps, size, rank) or None.

    Returns:
      A function of a stack of matrices or of transposed ones, and of the rank.
    """

    def one(x: jax.Array, rank: int) -> jax.Array:
        total = jnp.zeros((x.shape[0], rank), x.dtype)
        for name, (fan_in, fan_out) in recorded.items():
            for g, bases in ((grads[name].mT, fan_in), (grads[name], fan_out)):
                if bases is None or g.shape[1:] != x.shape:
                    continue
                found = jnp.all(g == x, axis=(1, 2))
                total += found.any() * jnp.asarray(bases)[jnp.argmax(found)]
        return total

    return lambda x, rank: jax.vmap(lambda y: one(y, rank))(x)


def projectors(case: Case) -> dict[str, Any]:
    """Sorts what was recorded into bases of fan-in and of fan-out, (size, rank)."""
    left, right = (
        case.under("extra/projector_left"),
        case.under("extra/projector_right"),
    )
    found = {name: (right[name].mT, left[name]) for name in left}
    for name, x in case.under("extra/projector").items():
        out, _ = case.init[name].shape
        rank = min(x.shape[1:])
        is_out = x.shape[1:] == (out, rank)
        found[name] = (None, x) if is_out else (x.mT, None)
    return found


def galore(values: Settings, case: Case) -> Trajectory:
    settings = {
        "learning_rate": values.take("lr", 1e-3),
        "eps": values.take("eps", 1e-6),
        "weight_decay": values.take("weight_decay", 0.0),
    }
    settings["b1"], settings["b2"] = values.take("betas", (0.9, 0.999))
    correct = values.take("correct_bias", True)
    values.idle("no_deprecation_warning", because="it is about a warning")
    tx = optimizers.galore(
        rest=low_memory_adam.adamw_afterwards(**settings, bias_correction=correct),
        rank=values.take("rank"),
        every=values.take("update_proj_gap"),
        scale=values.take("scale"),
        side=SIDES[values.take("proj_type", "std", among=SIDES)],
        basis=recorded_basis(case.grads, projectors(case)),
        bias_correction=correct,
        views=views(case),
        **settings,
    )
    return Trajectory(tx)


ADAPTERS = {"galore_torch.GaLoreAdamW": galore}
