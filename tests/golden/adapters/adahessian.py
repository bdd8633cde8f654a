"""AdaHessian with the recorded draws: the product of each step is fed as curvature."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import optimizers, trees
from tests.golden.comparing import Trajectory
from tests.golden.reading import Case
from tests.golden.settings import Settings


def _views(params: Any) -> Any:
    """Convolutions are (out, in, kh, kw); the window comes first among the inputs."""
    return jax.tree.map(
        lambda x: trees.MatrixView((2, 3, 1), (0,)) if x.ndim == 4 else None, params
    )


def _fed(tx: optax.GradientTransformationExtraArgs, diagonals: Any):
    """Gives the transformation the recorded curvature of its own step."""

    def init(params):
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(updates, state, params=None):
        count, inner = state
        diagonal = jax.tree.map(lambda x: x[count], diagonals)
        updates, inner = tx.update(updates, inner, params, hessian_diag=diagonal)
        return updates, (count + 1, inner)

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class _Fed:
    """A trajectory whose curvature is read from the case."""

    tx: optax.GradientTransformationExtraArgs

    def measure(self, case: Case):
        diagonals = jax.tree.map(
            lambda z, product: jnp.asarray(z * product),
            case.under("extra/rademacher"),
            case.under("extra/hvp"),
        )
        return Trajectory(_fed(self.tx, diagonals)).measure(case)


def adahessian(values: Settings, case: Case) -> _Fed:
    values.idle("single_gpu", because="one device recorded the numbers")
    b1, b2 = values.take("betas", (0.9, 0.999))
    return _Fed(
        optimizers.adahessian(
            values.take("lr", 0.15),
            b1=b1,
            b2=b2,
            eps=values.take("eps", 1e-4),
            hessian_power=values.take("hessian_power", 1),
            weight_decay=values.take("weight_decay", 0),
            average="windows",
            views=_views,
        )
    )


ADAPTERS = {"Adahessian": adahessian}
