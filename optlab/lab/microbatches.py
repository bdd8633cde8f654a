"""An update from several microbatches, of which one at a time is in memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from optlab import estimators
from optlab.lab import flax_step, placement


class Sums(NamedTuple):
    """What the microbatches of an update have given so far.

    Attributes:
      moments: Mean and spread of their gradients.
      loss: Sum of their losses, shape (), float32.
      rest: What the model keeps beside its parameters, such as batch statistics.
    """

    moments: estimators.GradientMoments
    loss: jax.Array
    rest: Any


class Slopes(NamedTuple):
    """What a second pass over the microbatches has given so far.

    Attributes:
      moments: Of their losses' slopes along the mean gradient.
      rest: As in `Sums`.
    """

    moments: estimators.GradientMoments
    rest: Any


def nothing(model: nnx.Module, optimizer: nnx.Optimizer) -> Sums:
    """Returns the sums to which `add` adds."""
    _, params, rest = nnx.split(model, optimizer.wrt, ...)
    # A copy: the sums are donated, and the model is not.
    rest = jax.tree.map(jnp.copy, rest)
    return Sums(estimators.no_gradients(params), jnp.zeros(()), rest)


def no_slopes(model: nnx.Module, optimizer: nnx.Optimizer) -> Slopes:
    """Returns the slopes to which `add_slope` adds."""
    sums = nothing(model, optimizer)
    return Slopes(estimators.no_gradients(jnp.zeros(())), sums.rest)


def add(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    sums: Sums,
    batch: Any,
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
) -> Sums:
    """Differentiates the loss of a microbatch and adds the gradient to the others.

    Args:
      model: The model; it stays as it is.
      optimizer: Its optimizer, as for `flax_step.train_step`; likewise.
      sums: Sums so far.
      batch: What the loss takes.
      loss: As for `flax_step.train_step`.
    """
    run, params, _ = flax_step.functional(model, optimizer.wrt, loss)
    (value, rest), grads = flax_step.value_and_grad(run, params, sums.rest, batch)
    one = jax.tree.map(lambda g: g[None], grads)
    total = sums.loss + value.astype(jnp.float32)
    return Sums(estimators.add_gradients(sums.moments, one), total, rest)


def add_slope(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    sums: Sums,
    slopes: Slopes,
    batch: Any,
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
) -> Slopes:
    """Adds the slope of a microbatch's loss along the mean gradient of all of them.

    Args:
      model: As for `add`.
      optimizer: As there.
      sums: Sums of all microbatches.
      slopes: Slopes so far.
      batch: What the loss takes, microbatches in the same order as before.
      loss: As for `flax_step.train_step`.
    """
    run, params, _ = flax_step.functional(model, optimizer.wrt, loss)
    mean = jax.tree.map(lambda m, p: m.astype(p.dtype), sums.moments.mean, params)

    def along(params: Any, mean: Any, rest: Any, batch: Any) -> tuple[jax.Array, Any]:
        _, slope, rest = jax.jvp(
            lambda p: run(p, rest, batch), (params,), (mean,), has_aux=True
        )
        return slope, rest

    placed = placement.automatic(along, (None, slopes.rest))
    slope, rest = placed(params, mean, slopes.rest, batch)
    return Slopes(estimators.add_gradients(slopes.moments, slope[None]), rest)


def train_step(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    sums: Sums,
    slopes: Slopes | None,
    *,
    key: jax.Array | None = None,
) -> flax_step.Scalars:
    """Takes one training step along a mean gradient, in place.

    Args:
      model: The model.
      optimizer: As for `flax_step.train_step`. Its transformation is given `value`,
        `grad` and `key`; the microbatches are gone, so there is no `value_fn`.
      sums: Sums of the microbatches.
      slopes: Slopes of the same, or None.
      key: As for `flax_step.train_step`.

    Returns:
      What `flax_step.train_step` returns, the loss being the mean; and of the
      microbatches' gradients `squared_norm` of the mean, `variance`, and
      `variance_along` the mean, NaN without slopes.
    """
    nnx.update(model, sums.rest)
    moments, params = sums.moments, nnx.state(model, optimizer.wrt)
    grads = jax.tree.map(lambda m, p: m.astype(p.dtype), moments.mean, params)
    value, extra = sums.loss / moments.count, {}
    if isinstance(optimizer.tx, optax.GradientTransformationExtraArgs):
        extra = {"value": value, "grad": grads}
        extra |= {} if key is None else {"key": key}
    updates = optimizer.update(model, grads, **extra)
    along = jnp.full((), jnp.nan)
    if slopes is not None:
        along = slopes.moments.variance / moments.squared_norm
    return {
        **flax_step.scalars_of(value, grads, updates, optimizer.opt_state),
        "squared_norm": moments.squared_norm,
        "variance": moments.variance,
        "variance_along": along,
    }
