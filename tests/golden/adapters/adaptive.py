"""AdaBelief, Adan in two conventions, diffGrad and SGD-SaI."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import optimizers
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def adabelief(values: Settings, case: Case) -> Trajectory:
    """AdaBelief of its authors' package."""
    del case
    values.idle("print_change_log", because="it prints")
    b1, b2 = values.take("betas", (0.9, 0.999))
    decay = values.take("weight_decay", 0.0)
    decoupled = values.take("weight_decouple", True)
    # Without the rate, which only decoupled decay can be.
    fixed = values.take("fixed_decay", False) and decoupled
    tx = optimizers.adabelief(
        values.take("lr", 1e-3),
        b1=b1,
        b2=b2,
        eps=values.take("eps", 1e-16),
        rectify=values.take("rectify", True),
        sgd_start=values.take("degenerated_to_sgd", True),
        amsgrad=values.take("amsgrad", False),
        weight_decay=0.0 if fixed else decay,
        decoupled=decoupled,
    )
    if fixed:
        tx = optax.chain(tx, optax.add_decayed_weights(-decay))
    return Trajectory(tx)


def adan(values: Settings, case: Case) -> Trajectory:
    """Adan of its authors."""
    del case
    for name in ("foreach", "fused"):
        values.idle(name, because="it chooses the code that does the same sums")
    b1, b2, b3 = values.take("betas", (0.98, 0.92, 0.99))
    return Trajectory(
        optimizers.adan(
            values.take("lr", 1e-3),
            b1=b1,
            b2=b2,
            b3=b3,
            eps=values.take("eps", 1e-8),
            # 0 is how they say that nothing is clipped.
            max_grad_norm=values.take("max_grad_norm", 0.0) or None,
            weight_decay=values.take("weight_decay", 0.0),
            decay_order="together" if values.take("no_prox", False) else "proximal",
        )
    )


def adan_pytorch(values: Settings, case: Case) -> Trajectory:
    """Adan of adan-pytorch: other betas, and a first step that counts for nothing."""
    del case
    values.take("restart_cond", None, among=(None,))
    b1, b2, b3 = (1 - beta for beta in values.take("betas", (0.02, 0.08, 0.01)))
    tx = optimizers.adan(
        values.take("lr", 1e-3),
        b1=b1,
        b2=b2,
        b3=b3,
        eps=values.take("eps", 1e-8),
        weight_decay=values.take("weight_decay", 0.0),
    )
    return Trajectory(_without_first_gradient(tx))


def _without_first_gradient(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Feeds zero in the place of the first gradient, which is remembered all the same.

    Zero averages stay zero, and the count, of which the corrections are made, goes on.
    """

    def update(updates: optax.Updates, state: Any, params: Any = None) -> Any:
        first = optax.tree.get(state[0], "count") == 0
        fed = jax.tree.map(lambda g: jnp.where(first, 0, g), updates)
        steps, (adan_state, *others) = tx.update(fed, state, params)
        return steps, (adan_state._replace(previous=updates), *others)

    return optax.GradientTransformation(tx.init, update)


def diffgrad(values: Settings, case: Case) -> Trajectory:
    """Either release of diffGrad.

    Recorded with a new array for each gradient, the first cannot fall into its trap.
    """
    del case
    b1, b2 = values.take("betas", (0.9, 0.999))
    return Trajectory(
        optimizers.diffgrad(
            values.take("lr", 1e-3),
            b1=b1,
            b2=b2,
            eps=values.take("eps", 1e-8),
            weight_decay=values.take("weight_decay", 0.0),
        )
    )


def sgd_sai(values: Settings, case: Case) -> Trajectory:
    """SGD-SaI of its authors, with what they do to leaves of one entry."""
    del case
    return Trajectory(
        optimizers.sgd_sai(
            values.take("lr", 1e-2),
            b1=values.take("momentum", 0.9),
            eps=values.take("eps", 1e-8),
            weight_decay=values.take("weight_decay", 1e-2),
            safe=False,
        )
    )


ADAPTERS = {
    "adabelief_pytorch.AdaBelief": adabelief,
    "adan.Adan": adan,
    "adan_pytorch.Adan": adan_pytorch,
    "diffgrad in diffGrad.py": diffgrad,
    "diffgrad in diffGrad_v2.py": diffgrad,
    "sgd_sai.SGD_sai": sgd_sai,
}
