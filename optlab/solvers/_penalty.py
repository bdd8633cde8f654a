"""Bilevel problems by gradients alone: two copies of the parameters, and a penalty."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import estimators, links

WHO = "penalty_bilevel"


class PenaltyBilevelState(NamedTuple):
    """State of `penalty_bilevel`; arrays are float32 or wider.

    Attributes:
      count: Steps taken, shape (), int32.
      hyper: Hyperparameters x.
      params: Parameters y, which are also pulled by the upper loss.
      reference: Parameters z, which follow the lower loss alone: those to deploy as
        what training with x gives.
      hyper_state: State of the optimizer of x.
      params_state: State of the optimizer of y.
      reference_state: State of the optimizer of z.
    """

    count: jax.Array
    hyper: Any
    params: Any
    reference: Any
    hyper_state: Any
    params_state: Any
    reference_state: Any


class PenaltyStep(NamedTuple):
    """What a step of `penalty_bilevel` found, before x moved.

    Attributes:
      value: Upper loss f(x, y), shape ().
      gap: g(x, y) - g(x, z), shape (): how much the lower loss gives way. On the batch;
        below zero while z is behind.
      grads: The estimate of dF/dx, shaped like the hyperparameters.
    """

    value: jax.Array
    gap: jax.Array
    grads: Any


class PenaltyBilevel(NamedTuple):
    """What `penalty_bilevel` makes: pure functions, for `jax.jit` with donated state.

    Attributes:
      init: (hyper, params) -> state, a copy of both.
      step: (state, upper_batch, lower_batch) -> (state, `PenaltyStep`).
    """

    init: Callable[[Any, Any], PenaltyBilevelState]
    step: Callable[
        [PenaltyBilevelState, Any, Any], tuple[PenaltyBilevelState, PenaltyStep]
    ]


def penalty_bilevel(
    upper: Callable[..., jax.Array],
    lower: Callable[..., jax.Array],
    hyper_optimizer: optax.GradientTransformation,
    params_optimizer: optax.GradientTransformation,
    *,
    sigma: float | jax.Array | optax.Schedule = 0.1,
    lower_steps: int = 1,
) -> PenaltyBilevel:
    """Makes a step that trains parameters and hyperparameters side by side.

    Wanted is the x with the smallest f(x, y(x)), y(x) the minimum of g(x, .):

        z <- z - a d_z g(x, z)
        y <- y - a d_y (sigma f + g)(x, y)                 both `lower_steps` times
        x <- x - b (d_x f(x, y) + (d_x g(x, y) - d_x g(x, z)) / sigma)

    where the plain steps stand for those of the optimizers. There are no second
    derivatives; the cost is three gradients and a forward pass or two by the
    parameters, and twice the memory of training. The direction of x is that of
    `estimators.penalty_hypergradient` once y and z have settled, off by O(sigma), so
    the rate of x must be the slower one. Both copies have the same batch in all that
    is subtracted: noise cancels instead of being divided by sigma. They begin alike,
    so that the first steps of x see d_x f alone.

    The published step for large models, with alpha = 1 / sigma, scales the gradient of
    y by alpha, which a constant rate would have to follow as sigma falls; AdamW does
    not see it.

    Args:
      upper: f: from hyperparameters, parameters and a batch to a number, such as the
        loss on clean data.
      lower: g: from the same to a number, such as the loss on weighted sources. What
        is not in a batch has no gradient in this step.
      hyper_optimizer: Optimizer of x. `optax.MultiSteps` around it averages over
        several batches.
      params_optimizer: Optimizer of y, and again of z.
      sigma: Weight of the upper loss, above 0: a number, a scalar array or a schedule
        of the step. Errors are proportional to it, rounding and noise to its inverse.
      lower_steps: Steps of y and z, on one batch, for each of x.

    Returns:
      The functions. Half precision is widened to float32 in `init`: y - z is about
      sigma in size, and would be rounded away.

    Raises:
      TypeError: If an optimizer is none; in the step, if a loss is not one number in
        float32 or wider.
      ValueError: If sigma is not above 0, or below the resolution of the parameters, or
        lower_steps are below 1.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import solvers
      >>> bilevel = solvers.penalty_bilevel(
      ...     lambda x, y, goal: jnp.sum((y - goal) ** 2) / 2,
      ...     lambda x, y, _: jnp.sum((y - 2 * x) ** 2) / 2,
      ...     optax.sgd(0.02), optax.sgd(0.5))
      >>> state, step = bilevel.init(0.0, 0.0), jax.jit(bilevel.step)
      >>> for _ in range(200):
      ...     state, found = step(state, 3.0, None)
      >>> print(f"{state.hyper:.2f} {state.reference:.2f}")
      1.50 3.00

    Source:
      Kwon, Kwon, Wright, Nowak, "On penalty methods for nonconvex bilevel optimization
      and first-order stochastic approximation", 2023, arXiv:2309.01753, single loop,
      without its projections and its variance reduction; for the weights of data
      sources Pan et al., "ScaleBiO: Scalable bilevel optimization for LLM data
      reweighting", 2024, arXiv:2406.19976.
    """
    links.require_transformation(f"{WHO}: hyper_optimizer", hyper_optimizer)
    links.require_transformation(f"{WHO}: params_optimizer", params_optimizer)
    links.require_positive(WHO, sigma=sigma)
    if lower_steps < 1:
        raise ValueError(f"{WHO}: lower_steps must be 1 or more, got {lower_steps}")
    hyper_tx, params_tx = map(
        optax.with_extra_args_support, (hyper_optimizer, params_optimizer)
    )

    def init(hyper: Any, params: Any) -> PenaltyBilevelState:
        trees = jax.tree.map(jnp.asarray, (hyper, params))
        links.require_felt(WHO, trees, 1)
        x, y = _copied(trees)
        _, z = _copied(trees)
        count = jnp.zeros((), jnp.int32)
        states = (hyper_tx.init(x), params_tx.init(y), params_tx.init(z))
        return PenaltyBilevelState(count, x, y, z, *states)

    def step(
        state: PenaltyBilevelState, upper_batch: Any, lower_batch: Any
    ) -> tuple[PenaltyBilevelState, PenaltyStep]:
        x = state.hyper
        weight = jnp.asarray(sigma(state.count)) if callable(sigma) else sigma

        def f(x: Any, y: Any) -> jax.Array:
            return _number(upper(x, y, upper_batch))

        def g(x: Any, y: Any) -> jax.Array:
            return _number(lower(x, y, lower_batch))

        def follow(_: Any, moving: Any) -> Any:
            (y, y_state), (z, z_state) = moving
            pull = jax.grad(lambda y: weight * f(x, y) + g(x, y))(y)
            fall = jax.grad(g, 1)(x, z)
            return (
                _moved(params_tx, pull, y_state, y),
                _moved(params_tx, fall, z_state, z),
            )

        moving = (
            (state.params, state.params_state),
            (state.reference, state.reference_state),
        )
        if lower_steps == 1:
            moving = follow(0, moving)
        else:
            moving = jax.lax.fori_loop(0, lower_steps, follow, moving)
        (y, y_state), (z, z_state) = moving
        grads = estimators.penalty_hypergradient(f, g, x, y, z, weight)
        found = PenaltyStep(f(x, y), g(x, y) - g(x, z), grads)
        x, x_state = _moved(hyper_tx, grads, state.hyper_state, x)
        states = (x_state, y_state, z_state)
        return PenaltyBilevelState(state.count + 1, x, y, z, *states), found

    return PenaltyBilevel(init, step)


def _number(value: jax.Array) -> jax.Array:
    links.require_precise_loss(WHO, value)
    return value


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, links.widen(tree))


def _moved(
    tx: optax.GradientTransformationExtraArgs, grads: Any, state: Any, params: Any
) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state
