"""SOAP of nikhilvyas/SOAP: every axis of a tensor has its own basis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from optlab import kernels, optimizers
from tests.golden.comparing import FLOAT64, Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings

# Float32 as published; the case's own hint.
FLOAT32 = 1e-4


def _filled(case: Case) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Where the statistics have no rank the reference's columns were left to rounding.

    They are taken over: from that recorded basis whose other columns are the computed
    ones.
    """
    recorded = [x for key, x in case.arrays.items() if key.startswith("extra/Q/")]

    def one(statistic: jax.Array, basis: jax.Array) -> jax.Array:
        size = len(basis)
        candidates = jnp.asarray(
            np.concatenate([q for q in recorded if q.shape[-1] == size])
        )
        rank = jnp.linalg.matrix_rank(statistic, rtol=1e-12)
        known = jnp.arange(size) < rank
        alike = jnp.abs(jnp.einsum("kij,ij->kj", candidates, basis))
        nearest = candidates[jnp.argmax(jnp.sum(alike * known, axis=-1))]
        return jnp.where(known, basis, nearest)

    return jax.vmap(one)


def soap(values: Settings, case: Case) -> Trajectory:
    b1, b2 = values.take("betas", (0.95, 0.95))
    b3 = values.take("shampoo_beta", -1)
    values.take("merge_dims", False, among=[False])
    values.idle("data_format", because="it says which axes are merged, and none are")
    filled = _filled(case)

    def eigenbasis(x: jax.Array) -> jax.Array:
        return filled(x, kernels.eigenbasis(x))

    def refresh(x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        new, order = kernels.refresh_eigenbasis(x, basis)
        return filled(x, new), order

    tx = optimizers.soap(
        values.take("lr", 3e-3),
        b1=b1,
        b2=b2,
        b3=b3 if b3 >= 0 else None,
        eps=values.take("eps", 1e-8),
        weight_decay=values.take("weight_decay", 0.01),
        every=values.take("precondition_frequency", 10),
        max_size=values.take("max_precond_dim", 10000),
        vectors=values.take("precondition_1d", False),
        normalize=values.take("normalize_grads", False),
        bias_correction=values.take("correct_bias", True),
        eigenbasis=eigenbasis,
        refresh=refresh,
        views="axes",
    )
    if case.meta.get("dtype") == "float32":
        return Trajectory(tx, FLOAT32, "float32 as published")
    return Trajectory(tx, FLOAT64)


ADAPTERS = {"SOAP": soap}
