"""The sharpness of a run beside what its learning rate can stand."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import estimators, links
from optlab.probes import _eigenpairs, _in_a_state, _krylov, _trace

Learning = optax.ScalarOrSchedule


def stability_threshold(
    learning_rate: Any,
    *,
    momentum: float | jax.Array = 0.0,
    nesterov: bool = False,
    dampened: bool = False,
) -> jax.Array:
    """Tells how large a curvature a learning rate can stand: the edge of stability.

    On a quadratic, steps grow without end along eigenvectors above it. Full-batch
    training raises the sharpness until it is there, and holds it there.

        2 / lr                                 gradient descent
        2 (1 + b) / lr                         with momentum b
        2 (1 + b) / ((1 + 2 b) lr)             with Nesterov's
        the last two over 1 - b                dampened, as in Adam

    For Adam it is the bound of the curvature over its denominator: see
    `estimators.preconditioned_product`; with b 0.9 it is 38 / lr.

    Args:
      learning_rate: The rate, above 0; an array may be traced.
      momentum: b, at least 0 and below 1.
      nesterov: Whether the momentum looks ahead, as in `optax.trace`.
      dampened: Whether a new gradient enters with the factor 1 - b.

    Returns:
      The threshold, float32 or wider; infinite at a rate of 0.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> from optlab import probes
      >>> print(probes.stability_threshold(0.1))
      20.0
      >>> print(probes.stability_threshold(0.1, momentum=0.5, dampened=True))
      60.0

    Source:
      Cohen et al., "Gradient descent on neural networks typically occurs at the edge of
      stability", 2021, arXiv:2103.00065; for Adam arXiv:2207.14484, 2022. The formulas
      are those of a quadratic and are held to its characteristic polynomial by a test.
    """
    links.require_nonnegative("stability_threshold", learning_rate=learning_rate)
    links.require_decays("stability_threshold", momentum=momentum)
    b = jnp.asarray(momentum, float)
    bound = 2 * (1 + b)
    if nesterov:
        bound = bound / (1 + 2 * b)
    if dampened:
        bound = bound / (1 - b)
    return bound / jnp.asarray(learning_rate, float)


class RecordCurvatureState(NamedTuple):
    """State of `record_curvature`.

    Attributes:
      count: Updates seen so far, shape (), int32.
      direction: The latest sharpest direction, shaped like the parameters, float32 or
        wider.
      step: Updates done at each measurement, -1 for those to come, shape (length,),
        int32; measurement i is at place i modulo `length`.
      sharpness: Largest eigenvalue at each measurement, shape (length,), float32, as
        in the next three.
      trace: The trace of the Hessian.
      trace_error: Its standard error.
      edge: The stability threshold of the rate in force.
    """

    count: jax.Array
    direction: Any
    step: jax.Array
    sharpness: jax.Array
    trace: jax.Array
    trace_error: jax.Array
    edge: jax.Array


class CurvatureHistory(NamedTuple):
    """What `curvature_history` reads, each of shape (measurements,), on the host.

    Attributes:
      step: Updates done at each measurement.
      sharpness: Largest eigenvalue of the Hessian.
      trace: Its trace, NaN if it was not asked for.
      trace_error: The trace's standard error.
      edge: What sharpness the learning rate can stand.
    """

    step: np.ndarray
    sharpness: np.ndarray
    trace: np.ndarray
    trace_error: np.ndarray
    edge: np.ndarray


def record_curvature(
    learning_rate: Learning,
    key: jax.Array,
    *,
    length: int,
    every: int = 10,
    steps: int = 4,
    draws: int = 0,
    momentum: float | jax.Array = 0.0,
    nesterov: bool = False,
    dampened: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Watches the edge of stability: sharpness and trace beside 2 / rate.

    Every so many steps a few Lanczos steps look for the largest eigenvalue of the
    Hessian of this batch's loss, from the direction found the time before; near an
    edge that hardly turns. Updates pass through untouched, bit for bit.

    Updates need `loss_fn` (or `value_fn`), the loss of this batch as a function of the
    parameters. For a sharpness that means the data, train on full batches or read it
    as that of the batch.

    Args:
      learning_rate: The rate that the chain follows, a number or its schedule.
      key: Typed random key for the first direction and the trace.
      length: Number of measurements to keep, the latest ones.
      every: Steps between measurements; the first is before the first update.
      steps: Lanczos steps of each, one Hessian product and one vector of memory each.
      draws: Hessian products for the trace; 0 for no trace, else 2 or more.
      momentum: As for `stability_threshold`, for the edge.
      nesterov: As for `stability_threshold`.
      dampened: As for `stability_threshold`.

    Returns:
      The transformation. Its state has a direction as large as the parameters in
      float32, and four numbers for each measurement, which `curvature_history` reads.

    Raises:
      ValueError: If a number makes no sense, the rate is one for each group, or, in an
        update, `optax.masked` or `optax.partition` hides parameters.
      TypeError: If the key is not a typed one; in an update, if the loss or the
        parameters are missing.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import optimizers, probes
      >>> record = probes.record_curvature(0.1, jax.random.key(0), length=5, every=1)
      >>> tx = optax.chain(record, optimizers.sgd(0.1))
      >>> loss, w = lambda w: w[0] ** 2 / 2 + 5 * w[1] ** 2, jnp.ones(2)
      >>> _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, loss_fn=loss)
      >>> found = probes.curvature_history(state)
      >>> print(found.sharpness.round(3), found.edge)
      [10.] [20.]

    Source:
      Cohen et al., 2021, arXiv:2103.00065; the trace against 2 / rate, for noisy
      gradients, is the bound of linear stability of Wu, Ma, E, "How SGD selects the
      global minima in over-parameterized learning", 2018. UNVERIFIED: the papers were
      not read in full; the bounds are those of a quadratic.
    """
    who = "record_curvature"
    links.require_key(who, key)
    links.require_one_rate(who, learning_rate)
    for name, value in {"length": length, "every": every, "steps": steps}.items():
        _require_count(who, name, value, 1)
    _require_count(who, "draws", draws, 0)
    if draws == 1:
        raise ValueError(f"{who}: draws must be 0, for no trace, or 2 or more, got 1")
    kind = {"momentum": momentum, "nesterov": nesterov, "dampened": dampened}
    if not callable(learning_rate):
        stability_threshold(learning_rate, **kind)

    def init(params: optax.Params) -> RecordCurvatureState:
        direction = jax.tree.map(jnp.zeros_like, links.widen(params))
        never = jnp.full(length, -1, jnp.int32)
        rows = (jnp.full(length, jnp.nan, jnp.float32) for _ in range(4))
        return RecordCurvatureState(jnp.zeros((), jnp.int32), direction, never, *rows)

    def measured(params: Any, state: RecordCurvatureState, loss: Any) -> Any:
        hessian = estimators.hessian_product(loss, params)
        first, more = jax.random.split(jax.random.fold_in(key, state.count))
        m = _krylov.order(who, "steps", steps, params)
        sharpness, direction = _sharpest(hessian, params, state.direction, first, m)
        total = (jnp.nan, jnp.nan)
        if draws:
            total = _trace.trace(hessian, params, more, draws=draws)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        numbers = (state.count, sharpness, *total, stability_threshold(rate, **kind))
        place = (state.count // every) % length
        rows = [
            row.at[place].set(jnp.asarray(number, row.dtype))
            for row, number in zip(state[2:], numbers, strict=True)
        ]
        return RecordCurvatureState(state.count, direction, *rows)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RecordCurvatureState]:
        loss = _loss(who, params, extra_args)
        state = jax.lax.cond(
            state.count % every == 0,
            lambda state: measured(params, state, loss),
            lambda state: state,
            RecordCurvatureState(*state),
        )
        rows = map(links.settled, state[2:])
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, RecordCurvatureState(count, state.direction, *rows)

    return optax.GradientTransformationExtraArgs(init, update)


def _sharpest(
    hessian: estimators.Product, params: Any, known: Any, key: jax.Array, steps: int
) -> tuple[jax.Array, Any]:
    """Finds the largest eigenvalue from a direction that may be zero, not known yet."""
    is_known = links.tree_norm(known) > 0
    start = jax.tree.map(
        lambda old, new: jnp.where(is_known, old, new.astype(old.dtype)),
        known,
        _krylov.normal_like(key, params),
    )
    reduced = _krylov.tridiagonal(hessian, start, steps)
    value, direction = _eigenpairs.ritz_pair(reduced)
    # A loss that is no number for once shall not be remembered.
    good = jnp.isfinite(value)
    keep = jax.tree.map(lambda new, old: jnp.where(good, new, old), direction, known)
    return value, keep


def curvature_history(state: Any) -> CurvatureHistory:
    """Reads what a `record_curvature` in a chain has measured.

    Args:
      state: State of a chain with one such link, however nested; an `nnx.Optimizer`'s
        `opt_state` too.

    Returns:
      The measurements in order: all of them or, when there were more, the latest
      `length`.

    Raises:
      ValueError: If the state has no such link or several.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import probes
      >>> record = probes.record_curvature(0.1, jax.random.key(0), length=2)
      >>> print(probes.curvature_history(record.init(jnp.ones(2))).sharpness)
      []
    """
    link = _in_a_state.only_link(
        "curvature_history", "record_curvature", RecordCurvatureState, state
    )
    # A variable of nnx is a tree with one leaf, the array.
    rows = [np.asarray(jax.tree.leaves(row)[0]) for row in link[2:]]
    kept = [i for i in np.argsort(rows[0]) if rows[0][i] >= 0]
    return CurvatureHistory(*(row[kept] for row in rows))


def _require_count(who: str, name: str, value: Any, least: int) -> None:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"{who}: {name} must be an integer known when the chain is built, got"
            f" {value!r}; under optax.inject_hyperparams name it in static_args"
        ) from error
    if number < least:
        raise ValueError(f"{who}: {name} must be {least} or more, got {number}")


def _loss(who: str, params: Any, extra_args: Mapping[str, Any]) -> Any:
    """Finds the loss among the arguments of an update."""
    loss = extra_args.get("loss_fn")
    loss = extra_args.get("value_fn") if loss is None else loss
    if loss is None or params is None:
        raise TypeError(
            f"{who}: an update needs the loss and the parameters: tx.update(grads,"
            " state, params, loss_fn=loss), loss from parameters to the loss on this"
            " batch"
        )

    def is_masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
        raise ValueError(
            f"{who}: some parameters are hidden by optax.masked or optax.partition, so"
            f" the loss cannot be evaluated here. Put {who} beside them, in the chain"
            " around."
        )
    return loss
