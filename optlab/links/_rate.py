"""The learning rate, with one layout of its state for numbers and schedules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ScaleByLearningRateState(NamedTuple):
    """State of `scale_by_learning_rate`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      learning_rate: Rate of the latest update (before the first: of the first), shape
        (), float32 (float64 when 64-bit types are on). With a schedule for each group
        a dictionary of them.
      settings: Values of a steered schedule by name, shape (), int32 or float32; empty
        for any other rate. `optax.tree.set` changes them.
    """

    count: jax.Array
    learning_rate: Any
    settings: Any


def scale_by_learning_rate(
    learning_rate: float | jax.Array | optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the learning rate and keeps the rate in the state.

    Optax's link of this name has an empty state for a constant and a counter for a
    schedule, so a run cannot swap one for the other when it resumes, and the rate in
    force can be read from neither. Here both have one layout: step and rate.

        u_t = -eta(t) u_t,   t = updates applied before this one

    Two kinds of schedule say more about themselves: one with an attribute `values`
    (`schedules.steered`) has these kept in the state and is called with them by name;
    one with an attribute `labels` (`schedules.per_group`) returns a rate for each
    group, and a leaf gets the rate of its label.

    Args:
      learning_rate: Rate eta, a number, a scalar array (it may be traced), or a
        schedule from the step to the rate.

    Returns:
      A transformation whose state is a `ScaleByLearningRateState`. The rate stays in
      float32 or wider whatever the dtype of the updates; updates keep their dtype.

    Raises:
      ValueError: If a leaf has the label of a group without a schedule, or the state
        was made for a schedule with other values.
      TypeError: If a setting that counts steps was set to another kind of number.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> tx = links.scale_by_learning_rate(lambda count: 0.5 / (1 + count))
      >>> state = tx.init(jnp.ones(2))
      >>> updates, state = tx.update(jnp.ones(2), state)
      >>> updates, state = tx.update(jnp.ones(2), state)
      >>> print(updates, state.count, state.learning_rate)
      [-0.25 -0.25] 2 0.25

    Source:
      Optax's `scale_by_learning_rate`, with the state described above.
    """
    values = getattr(learning_rate, "values", {}) if callable(learning_rate) else {}
    labels = getattr(learning_rate, "labels", None)

    def rate(count: jax.Array, settings: Any) -> Any:
        value = learning_rate
        if callable(learning_rate):
            value = learning_rate(count, **settings)
        # The default float, never the parameters' dtype. A copy, because the caller's
        # array must not be donated together with the state.
        return jax.tree.map(lambda v: jnp.array(v, dtype=float), value)

    def init(params: optax.Params) -> ScaleByLearningRateState:
        del params
        count = jnp.zeros((), jnp.int32)
        settings = jax.tree.map(lambda v: jnp.array(v, _dtype(v)), values)
        return ScaleByLearningRateState(count, rate(count, settings), settings)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLearningRateState]:
        del params, extra_args
        if set(values) != set(state.settings):
            raise ValueError(
                f"scale_by_learning_rate: the state has settings"
                f" {sorted(state.settings)}, the schedule values {sorted(values)}; a"
                " run starts and resumes with the same values in its state"
            )
        settings = jax.tree_util.tree_map_with_path(_like, values, state.settings)
        eta = rate(state.count, settings)
        if labels is None:
            updates = jax.tree.map(lambda u: (-eta * u).astype(u.dtype), updates)
        else:
            etas = _by_group(labels, eta, updates)
            updates = jax.tree.map(lambda u, e: (-e * u).astype(u.dtype), updates, etas)
        return updates, ScaleByLearningRateState(
            jnp.asarray(optax.safe_increment(state.count)), eta, settings
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _dtype(value: Any) -> Any:
    """Returns the dtype in which a setting is kept: steps in int32."""
    return jnp.int32 if jnp.issubdtype(jnp.result_type(value), jnp.integer) else float


def _like(path: Any, value: Any, setting: Any) -> jax.Array:
    """Gives a setting, which anyone may have set, the dtype of its initial value."""
    if _dtype(value) is not _dtype(setting) and _dtype(value) is jnp.int32:
        raise TypeError(
            f"scale_by_learning_rate: setting '{path[-1].key}' is an integer, got"
            f" {setting}; set it to jnp.int32(...)"
        )
    return jnp.asarray(setting, _dtype(value))


def _by_group(labels: Any, rates: dict[str, Any], tree: Any) -> Any:
    """Returns a tree with the rate of each leaf's group."""

    def fill(path: Any, label: str, part: Any) -> Any:
        if label not in rates:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"scale_by_learning_rate: leaf '{where}' has the label {label!r}; there"
                f" are schedules for {sorted(rates)}"
            )
        return jax.tree.map(lambda _: rates[label], part)

    labels = labels(tree) if callable(labels) else labels
    return jax.tree_util.tree_map_with_path(fill, labels, tree)
