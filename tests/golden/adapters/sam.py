"""Sharpness-aware minimization, whose second gradient is that of a recorded oracle."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import estimators, links, optimizers, wrappers
from tests.golden.comparing import Measurement, Trajectory
from tests.golden.reading import Case
from tests.golden.settings import NotInOptlabError, Settings


def _sgd(values: Settings) -> optax.GradientTransformation:
    momentum = values.take("momentum", 0)
    dampening = values.take("dampening", 0)
    rate = values.take("lr", 1e-3)
    decay = optax.add_decayed_weights(values.take("weight_decay", 0))
    if values.take("nesterov", False):
        # PyTorch allows it without dampening only.
        return optax.chain(
            decay, optimizers.sgd(rate, momentum=momentum, nesterov=True)
        )
    summed = links.add_dampened("sgd", momentum, dampening)
    return optax.chain(decay, summed, links.scale_by_learning_rate(rate))


def _adam(values: Settings, decoupled: bool) -> optax.GradientTransformation:
    if values.take("amsgrad", False):
        raise NotInOptlabError("Adam with the largest second moment")
    for name in ("fused", "capturable", "differentiable"):
        values.idle(name, because="it chooses the code that does the same sums")
    decoupled = values.take("decoupled_weight_decay", decoupled)
    b1, b2 = values.take("betas", (0.9, 0.999))
    decay = values.take("weight_decay", 0.01 if decoupled else 0)
    adam = optimizers.adamw(
        values.take("lr", 1e-3),
        b1=b1,
        b2=b2,
        eps=values.take("eps", 1e-8),
        weight_decay=decay if decoupled else 0.0,
    )
    return adam if decoupled else optax.chain(optax.add_decayed_weights(decay), adam)


def _inner(values: Settings) -> optax.GradientTransformation:
    """Builds the optimizer that steps, from the settings of its own class."""
    kind = values.take("name", among=("SGD", "Adam", "AdamW"))
    values.idle("foreach", because="it chooses the code that does the same sums")
    uphill = values.take("maximize", False)
    inner = _sgd(values) if kind == "SGD" else _adam(values, kind == "AdamW")
    values.finish()
    return optax.chain(optax.scale(-1.0), inner) if uphill else inner


def _oracle(case: Case, t: jax.Array) -> Any:
    """Makes the loss whose gradient at p is A p + b_t."""
    a, b = (jax.tree.map(jnp.asarray, case.under(f"extra/{k}")) for k in "Ab")

    def leaf(p: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        slope = a @ p.ravel() + b[t].ravel()
        return jnp.sum(jax.lax.stop_gradient(slope) * p.ravel())

    def loss(params: Any) -> jax.Array:
        return jnp.asarray(optax.tree.sum(jax.tree.map(leaf, params, a, b)))

    return loss


@dataclasses.dataclass(frozen=True)
class _Climbing:
    """A trajectory with its oracle, and the climbed points beside it."""

    inner: optax.GradientTransformation
    rho: float
    adaptive: bool

    def measure(self, case: Case) -> list[Measurement]:
        """Measures parameters, and the recorded gradients at the climbed points."""
        tx = wrappers.sharpness_aware(self.inner, rho=self.rho, adaptive=self.adaptive)

        def init(params: Any) -> Any:
            return jnp.zeros((), jnp.int32), tx.init(params)

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            count, state = state
            del updates  # they are those of the loss here
            loss = _oracle(case, count)
            here = jax.grad(loss)(params)
            steps, state = tx.update(here, state, params, loss_fn=loss)
            return steps, (count + 1, state)

        run = Trajectory(optax.GradientTransformation(init, update))
        return run.measure(case) + self._climbed(case)

    def _climbed(self, case: Case) -> list[Measurement]:
        """Measures the gradients of the estimator at the recorded parameters."""

        def init(params: Any) -> Any:
            return jnp.zeros((), jnp.int32), params

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            del updates
            count, at = state
            found = estimators.sharpness_aware_value_and_grad(
                _oracle(case, count), at, rho=self.rho, adaptive=self.adaptive
            )
            after = {k: jnp.asarray(x)[count] for k, x in case.params.items()}
            steps = jax.tree.map(jnp.subtract, found.grads, params)
            return steps, (count + 1, after)

        recorded = case.under("extra/grads_perturbed")
        if not recorded:
            return []
        seen = dataclasses.replace(case, params=recorded)
        return Trajectory(optax.GradientTransformation(init, update)).measure(seen)


def sam(values: Settings, case: Case) -> _Climbing:
    """SAM of davda54, around an optimizer of PyTorch."""
    kind = case.meta["hyperparameters"]["base_optimizer"]
    inside = values.take("base_optimizer")
    outer = ("base_optimizer", "rho", "adaptive")
    passed = {k: v for k, v in case.meta["hyperparameters"].items() if k not in outer}
    given = inside if isinstance(inside, dict) else {}
    for name in passed:
        values.idle(name, because="it is one of the inner optimizer")
    settings = {"name": kind, **passed, **given}
    inner = _inner(Settings("sam.base_optimizer", settings))
    return _Climbing(
        inner, values.take("rho", 0.05), bool(values.take("adaptive", False))
    )


ADAPTERS = {"SAM": sam}
