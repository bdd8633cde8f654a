"""The one Flax training step, for nnx and for linen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training import train_state

from optlab import inspection
from optlab.lab import placement

Scalars = dict[str, Any]

# What the state of `probes.track_law` foretells.
PREDICTIONS = ("predicted_loss", "predicted_final_loss")


def train_step(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batch: Any,
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    *,
    key: jax.Array | None = None,
) -> Scalars:
    """Takes one training step; changes the model and the optimizer in place.

    The transformation is given `value`, `grad`, `value_fn`, the same as `loss_fn`, and,
    if there is one, `key` as extra arguments. Those that it does not use cost nothing
    under `jax.jit`.

    Args:
      model: The model.
      optimizer: `nnx.Optimizer(model, tx, wrt=nnx.Param)`.
      batch: What the loss takes.
      loss: From a model and a batch to the loss, shape (), and other metrics, which
        are left aside here.
      key: Random key for this step, for transformations that draw numbers.

    Returns:
      `loss`, `gradient_norm`, `gradient_l1_norm` and `update_norm`, shape (), float32,
      and `learning_rates`, the rate of this step by parameter group. If the optimizer
      has a `probes.track_law`, `predicted_loss` and `predicted_final_loss` too: what
      the law says of this `loss`, and of the last one.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from optlab.lab import flax_step
      >>> model = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> model.kernel[...] = jnp.ones((1, 1))
      >>> optimizer = nnx.Optimizer(model, optax.sgd(0.25), wrt=nnx.Param)
      >>> loss = lambda model, x: (jnp.sum(model(x) ** 2), {})
      >>> scalars = flax_step.train_step(model, optimizer, jnp.ones((1, 1)), loss)
      >>> print(scalars["loss"], scalars["gradient_norm"], model.kernel[...])
      1.0 2.0 [[0.5]]
    """
    run, params, rest = functional(model, optimizer.wrt, loss)
    (value, rest), grads = value_and_grad(run, params, rest, batch)
    nnx.update(model, rest)
    value_fn = _value_fn(run, rest, batch)
    extra = _extra_arguments(optimizer.tx, value, grads, value_fn, key)
    foretold = _foretold(optimizer.opt_state)
    updates = optimizer.update(model, grads, **extra)
    return {**scalars_of(value, grads, updates, optimizer.opt_state), **foretold}


def optimizer_step(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batch: Any,
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    *,
    key: jax.Array | None = None,
) -> Scalars:
    """Takes the optimizer's part of `train_step` alone, to time it.

    Args:
      model: The model; its parameters serve as gradients too.
      optimizer: As for `train_step`.
      batch: As for `train_step`; for transformations that evaluate the loss.
      loss: As for `train_step`.
      key: As for `train_step`.

    Returns:
      An empty dictionary.
    """
    run, params, rest = functional(model, optimizer.wrt, loss)
    value_fn = _value_fn(run, rest, batch)
    extra = _extra_arguments(optimizer.tx, jnp.zeros(()), params, value_fn, key)
    optimizer.update(model, params, **extra)
    return {}


def evaluate(
    model: nnx.Module,
    batch: Any,
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    *,
    params: Any = None,
) -> dict[str, jax.Array]:
    """Returns the loss and the other metrics of a model in evaluation mode.

    Args:
      model: The model; dropout and the like are off in a copy of it.
      batch: What the loss takes.
      loss: As for `train_step`.
      params: Parameters in the place of the model's, see `params_to_evaluate`.
    """
    graphdef, state = nnx.split(model)
    if params is not None:
        state = nnx.merge_state(state, params)

    def run(state: Any, batch: Any) -> dict[str, jax.Array]:
        module = nnx.merge(graphdef, state, copy=True)
        module.eval()
        value, others = loss(module, batch)
        return {"loss": value, **others}

    return placement.automatic(run, None)(state, batch)


def params_to_evaluate(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    eval_params: Callable[[Any, Any], Any] | None,
) -> Any:
    """Returns the parameters that an optimizer reports, for `evaluate`.

    Args:
      model: The model.
      optimizer: Its optimizer.
      eval_params: From state and parameters, without variables of nnx, to those to
        evaluate, as in a row of the catalogue; None where training and evaluation are
        at one place.

    Returns:
      State of the model with these parameters, or None.
    """
    if eval_params is None:
        return None
    state, params = optimizer.opt_state, nnx.state(model, optimizer.wrt)
    found = eval_params(_arrays(state), _arrays(params))
    return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(found))


def _arrays(tree: Any) -> Any:
    """Takes arrays out of the variables of nnx."""
    return jax.tree.map(
        lambda x: x[...] if isinstance(x, nnx.Variable) else x,
        tree,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )


def functional(model: nnx.Module, wrt: Any, loss: Callable[..., Any]) -> Any:
    """Takes a model apart, so that its loss can be differentiated.

    Args:
      model: The model.
      wrt: Which of its variables are parameters.
      loss: As for `train_step`.

    Returns:
      The function (params, rest, batch) -> (loss, rest), parameters and rest.
    """
    graphdef, params, rest = nnx.split(model, wrt, ...)

    def run(params: Any, rest: Any, batch: Any) -> tuple[jax.Array, Any]:
        # A copy, for the variables of another trace cannot be changed here.
        module = nnx.merge(graphdef, params, rest, copy=True)
        value, _ = loss(module, batch)
        # Batch statistics and random streams have moved on.
        return value, nnx.split(module, wrt, ...)[2]

    return run, params, rest


def value_and_grad(run: Callable[..., Any], params: Any, rest: Any, batch: Any) -> Any:
    """Returns loss and rest, and the gradient, of what `functional` has made.

    Args:
      run: The function.
      params: Parameters.
      rest: What the model keeps beside them.
      batch: What the loss takes.
    """
    gradient = jax.value_and_grad(run, has_aux=True)
    return placement.automatic(gradient, ((None, rest), params))(params, rest, batch)


def _value_fn(run: Callable[..., Any], rest: Any, batch: Any) -> Callable[..., Any]:
    """From parameters to the loss on this batch, for line searches and the like.

    Optax's line searches refuse extra arguments that this function does not name.
    """
    placed = placement.automatic(run, (None, rest))

    def value_fn(params: Any, *, key: Any = None, loss_fn: Any = None) -> jax.Array:
        del key, loss_fn
        return placed(params, rest, batch)[0]

    return value_fn


def _extra_arguments(
    tx: optax.GradientTransformation,
    value: jax.Array,
    grads: Any,
    value_fn: Callable[[Any], jax.Array],
    key: jax.Array | None,
) -> dict[str, Any]:
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return {}
    extra = {"value": value, "grad": grads, "value_fn": value_fn, "loss_fn": value_fn}
    return extra if key is None else {**extra, "key": key}


def scalars_of(value: jax.Array, grads: Any, updates: Any, opt_state: Any) -> Scalars:
    """Returns the numbers of a step, as `train_step` says.

    Args:
      value: The loss.
      grads: The gradient.
      updates: The update.
      opt_state: State of the optimizer after it.
    """
    found = inspection.hyperparams(opt_state)
    grads = optax.tree.cast(grads, jnp.float32)
    return {
        "loss": value.astype(jnp.float32),
        "gradient_norm": optax.tree.norm(grads),
        "gradient_l1_norm": optax.tree.norm(grads, ord=1),
        "update_norm": optax.tree.norm(optax.tree.cast(updates, jnp.float32)),
        "learning_rates": {group: row["learning_rate"] for group, row in found.items()},
    }


def _foretold(opt_state: Any) -> Scalars:
    """What a law says of the loss before an update, by the state before it."""

    def is_law(node: Any) -> bool:
        return set(PREDICTIONS) <= set(getattr(node, "_fields", ()))

    for node in jax.tree.leaves(opt_state, is_leaf=is_law):
        if is_law(node):
            # A variable of nnx is a tree with one leaf, the array.
            return {key: jax.tree.leaves(getattr(node, key))[0] for key in PREDICTIONS}
    return {}


class LinenTrainState(train_state.TrainState):
    """Flax's train state for linen, with extra arguments for the transformation.

    Flax's own `apply_gradients` does not hand them to `tx.update`.
    """

    def apply_gradients(self, *, grads: Any, **extra_args: Any) -> "LinenTrainState":
        """Returns the state after an update.

        Args:
          grads: Gradients, of the parameters' structure.
          **extra_args: Extra arguments of `tx.update`, such as `value`.
        """
        return self._update(grads, extra_args)[0]

    def _update(self, grads: Any, extra: Any) -> tuple["LinenTrainState", Any]:
        tx = optax.with_extra_args_support(self.tx)
        updates, opt_state = tx.update(grads, self.opt_state, self.params, **extra)
        params = optax.apply_updates(self.params, updates)
        state = self.replace(step=self.step + 1, params=params, opt_state=opt_state)
        return state, updates


def linen_train_step(
    state: LinenTrainState,
    batch: Any,
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    *,
    key: jax.Array | None = None,
) -> tuple[LinenTrainState, Scalars]:
    """Takes one training step of a linen model: `train_step`, without changing any.

    Args:
      state: Parameters and optimizer.
      batch: What the loss takes.
      loss: From parameters and a batch to the loss, shape (), and other metrics.
      key: Random key for this step.

    Returns:
      The new state, and the numbers that `train_step` returns.
    """

    def run(params: Any, rest: tuple[()], batch: Any) -> tuple[jax.Array, tuple[()]]:
        return loss(params, batch)[0], rest

    (value, _), grads = value_and_grad(run, state.params, (), batch)
    value_fn = _value_fn(run, (), batch)
    extra = _extra_arguments(state.tx, value, grads, value_fn, key)
    foretold = _foretold(state.opt_state)
    state, updates = state._update(grads, extra)
    return state, {**scalars_of(value, grads, updates, state.opt_state), **foretold}
