"""Methods of their authors that set their own rate, or need no schedule."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import optimizers
from tests.golden.comparing import Measurement, Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def prodigy(values: Settings, case: Case) -> Trajectory:
    """Prodigy of prodigyopt."""
    del case
    values.idle("fsdp_in_use", because="one device holds everything")
    b1, b2, *others = values.take("betas", (0.9, 0.999))
    b3 = values.take("beta3", others[0] if others else None)
    return Trajectory(
        optimizers.prodigy(
            values.take("lr", 1.0),
            b1=b1,
            b2=b2,
            b3=b3,
            eps=values.take("eps", 1e-8),
            weight_decay=values.take("weight_decay", 0.0),
            decoupled=values.take("decouple", True),
            bias_correction=values.take("use_bias_correction", False),
            safeguard_warmup=values.take("safeguard_warmup", False),
            d0=values.take("d0", 1e-6),
            d_coef=values.take("d_coef", 1.0),
            growth_rate=float(values.take("growth_rate", "inf")),
            slice_p=values.take("slice_p", 1),
        )
    )


def dadapt_adam(values: Settings, case: Case) -> Trajectory:
    """DAdaptAdam of dadaptation."""
    del case
    values.idle("fsdp_in_use", because="one device holds everything")
    values.idle("log_every", because="it prints")
    b1, b2 = values.take("betas", (0.9, 0.999))
    return Trajectory(
        optimizers.dadapt_adam(
            values.take("lr", 1.0),
            b1=b1,
            b2=b2,
            eps=values.take("eps", 1e-8),
            weight_decay=values.take("weight_decay", 0.0),
            decoupled=values.take("decouple", False),
            bias_correction=values.take("use_bias_correction", False),
            d0=values.take("d0", 1e-6),
            growth_rate=float(values.take("growth_rate", "inf")),
        )
    )


def schedule_free_adamw(values: Settings, case: Case) -> "Averaged":
    """AdamW of schedulefree."""
    del case
    b1, b2 = values.take("betas", (0.9, 0.999))
    return Averaged(
        optimizers.schedule_free_adamw(
            values.take("lr", 0.0025),
            b1=b1,
            b2=b2,
            eps=values.take("eps", 1e-8),
            **_averaging(values),
        )
    )


def schedule_free_sgd(values: Settings, case: Case) -> "Averaged":
    """SGD of schedulefree."""
    del case
    return Averaged(
        optimizers.schedule_free_sgd(
            values.take("lr", 1.0),
            b1=values.take("momentum", 0.9),
            **_averaging(values),
        )
    )


def _averaging(values: Settings) -> dict[str, Any]:
    values.idle("foreach", because="it chooses the code that does the same sums")
    return {
        "weight_decay": values.take("weight_decay", 0.0),
        "warmup_steps": values.take("warmup_steps", 0),
        "r": values.take("r", 0.0),
        "weight_lr_power": values.take("weight_lr_power", 2.0),
        "decay_at": "z" if values.take("decay_at_z", False) else "y",
    }


class Averaged(Trajectory):
    """A trajectory of y, with the recorded x and z beside it."""

    def measure(self, case: Case) -> list[Measurement]:
        """Measures y, and the evaluated and stepping sequences where recorded."""
        found = super().measure(case)
        for name in ("x", "z"):
            recorded = case.under(f"extra/{name}")
            if recorded:
                seen = dataclasses.replace(case, params=recorded)
                found += Trajectory(_shown(self.tx, name)).measure(seen)
        return found


def _shown(tx: Any, name: str) -> optax.GradientTransformation:
    """Moves the parameters to x or z; y is kept in the state."""

    def init(params: Any) -> Any:
        return params, tx.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        y, state = state
        steps, state = tx.update(updates, state, y)
        y = optax.apply_updates(y, steps)
        shown = optimizers.schedule_free_params(state, y) if name == "x" else state.z
        return jax.tree.map(jnp.subtract, shown, params), (y, state)

    return optax.GradientTransformation(init, update)


ADAPTERS = {
    "dadaptation.DAdaptAdam": dadapt_adam,
    "prodigyopt.Prodigy": prodigy,
    "schedulefree.AdamWScheduleFree": schedule_free_adamw,
    "schedulefree.SGDScheduleFree": schedule_free_sgd,
}
