"""FRUGAL's AdamW and Lion, with the recorded choices in the place of our draws."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from optlab import optimizers
from tests.golden.adapters import galore
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings

# A matrix is (out, in) there: its columns are the fan-in.
COORDINATES = {"columns": "fan_in", "rows": "fan_out", "randk": "entries"}

ORDERS = ("random", "ascending", "descending", "mirror")


def _recorded_choice(case: Case, projection: str) -> Callable[..., jax.Array]:
    """Makes the function that knows a recorded gradient and the lines chosen then."""

    def lines(g: jax.Array) -> jax.Array:
        if projection == "entries":
            return g.reshape(len(g), -1, 1)
        return g if projection == "fan_in" else g.mT

    def one(x: jax.Array, amount: int) -> jax.Array:
        total = jnp.zeros(amount, jnp.int32)
        for name, chosen in case.under("extra/indices").items():
            grads = jnp.asarray(case.grads[name]).mT
            if lines(grads).shape[1:] != x.shape:
                continue
            if projection == "entries":  # (row, column) of (out, in)
                out, fan_in = chosen[:, 0], chosen[:, 1]
                chosen = fan_in * grads.shape[2] + out
            found = jnp.all(lines(grads) == x, axis=(1, 2))
            total += (found.any() * jnp.asarray(chosen)[jnp.argmax(found)]).astype(
                total.dtype
            )
        return total

    return lambda key, x, amount: jax.vmap(lambda y: one(y, amount))(x)


def _recorded_tensors(case: Case) -> Callable[..., jax.Array]:
    """Makes the function that knows the norms of a step and the tensors chosen then."""
    active = case.under("extra/active")
    names = sorted(active)  # the order of leaves
    norms = jnp.stack(
        [jnp.linalg.norm(jnp.asarray(case.grads[k]), axis=(1, 2)) for k in names], 1
    )
    chosen = jnp.stack([jnp.asarray(active[k]) for k in names], 1)

    def choose(key: jax.Array, x: jax.Array, amount: int) -> jax.Array:
        del key
        step = jnp.argmin(jnp.abs(norms - x[0, :, 0]).max(axis=1))
        return jnp.argsort(-chosen[step])[None, :amount]

    return choose


def _frugal(
    values: Settings,
    case: Case,
    rest: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    shared: dict,
) -> Trajectory:
    for name in ("proj_params", "_example_state_init"):
        values.idle(name, because="it says where parameters and state come from")
    factor = values.take("proj_params_lr_scale", 1.0)
    return Trajectory(
        optimizers.frugal(
            shared["learning_rate"] * factor,
            # The decay there is not multiplied by that factor.
            weight_decay=shared["weight_decay"] / factor,
            rest=rest,
            inner=inner,
            density=values.take("density", 0.25),
            every=values.take("update_gap", 200),
            state_free=values.take("inactive_update_rule", "sign_sgd"),
            state_free_scale=values.take("inactive_lr_scale", 1.0),
            views=galore.views(case),
            **_projection(values, case),
        )
    )


def _projection(values: Settings, case: Case) -> dict:
    kind = case.meta["reference_class"]
    if kind.startswith("Block"):
        return _tensors(values, case)
    reset = {"reset": values.take("reset_statistics", True)}
    if kind.startswith("Coord"):
        name = values.take("coord_choice", "columns", among=COORDINATES)
        projection = COORDINATES[name]
        return {
            "projection": projection,
            "choose": _recorded_choice(case, projection),
            **reset,
        }
    side = galore.SIDES[values.take("proj_side", "std", among=galore.SIDES)]
    # Whatever they are, the directions in use were recorded.
    values.take("proj_type", "svd", among=("svd", "random", "randperm"))
    basis = galore.recorded_basis(case.grads, galore.projectors(case))
    return {"projection": "svd", "side": side, "basis": basis, **reset}


def _tensors(values: Settings, case: Case) -> dict:
    values.idle("reset_statistics", because="blocks begin with no state in any case")
    order = values.take("block_order", "random", among=ORDERS)
    matrices = [name for name, x in case.init.items() if x.ndim == 2]
    if matrices != sorted(matrices):
        order = "random"  # there they go by the order in which they were listed
    choose = {"choose": _recorded_tensors(case)} if order == "random" else {}
    return {"projection": "tensors", "order": order, **choose}


def _adamw(values: Settings, case: Case) -> Trajectory:
    b1, b2 = values.take("betas", (0.9, 0.999))
    eps = values.take("eps", 1e-8)
    if not values.take("correct_bias", True):
        raise NotInOptlabError("FRUGAL without bias correction")
    shared = {
        "learning_rate": values.take("lr", 1e-3),
        "weight_decay": values.take("weight_decay", 0.01),
    }
    rest = optimizers.adamw(b1=b1, b2=b2, eps=eps, **shared)
    return _frugal(values, case, rest, optax.scale_by_adam(b1, b2, eps), shared)


def _lion(values: Settings, case: Case) -> Trajectory:
    b1, b2 = values.take("betas", (0.9, 0.99))
    shared = {
        "learning_rate": values.take("lr", 1e-4),
        "weight_decay": values.take("weight_decay", 0.0),
    }
    rest = optimizers.lion(b1=b1, b2=b2, **shared)
    return _frugal(values, case, rest, optax.scale_by_lion(b1, b2), shared)


ADAPTERS = {
    **{f"{kind}AdamW": _adamw for kind in ("Galore", "Coord", "Block")},
    **{f"{kind}Lion": _lion for kind in ("Galore", "Coord", "Block")},
}
