"""The norm of every step's gradient, kept in the optimizer's state."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab.probes import _in_a_state

KINDS = ("l1", "l2")


class RecordGradientNormsState(NamedTuple):
    """State of `record_gradient_norms`.

    Attributes:
      count: Updates seen so far, shape (), int32.
      norms: Norm of update t at place t modulo `length`, shape (length,), float32.
    """

    count: jax.Array
    norms: jax.Array


def record_gradient_norms(
    kind: str = "l2", *, length: int
) -> optax.GradientTransformationExtraArgs:
    """Keeps the norm of what comes in at every step, and passes it through untouched.

    Put it at the head of a chain, where updates are still gradients, with `length` the
    number of steps of the run: `schedules.refined` makes a better schedule of these
    norms, from "l2" for SGD and from "l1" for Adam. A longer run keeps the norms of
    its latest `length` steps.

        l1:  sum_i |g_i|        l2:  sqrt(sum_i g_i^2)      over all leaves together

    Args:
      kind: "l1" or "l2".
      length: Number of steps to keep, at least 1; four bytes of state each.

    Returns:
      A transformation whose updates are those that came in, bit for bit. Sums are
      float32 or wider for leaves of any dtype, and over all devices of a mesh; a
      gradient of 1e30 does not overflow in its square. NaN is kept as NaN.

    Raises:
      ValueError: If the kind is unknown or the length is below 1.
      TypeError: If the length is not an integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers, probes
      >>> record = probes.record_gradient_norms("l2", length=100)
      >>> tx = optax.chain(record, optimizers.sgd(0.1))
      >>> w = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> state = tx.init(w)
      >>> for _ in range(3):  # the gradient of half the square of w is w
      ...     updates, state = tx.update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> print(probes.gradient_norms(state))
      [5.   4.5  4.05]

    Source:
      Written for this library; Defazio et al., 2023, arXiv:2310.07831, say which norm
      a schedule is refined from.
    """
    if kind not in KINDS:
        raise ValueError(
            f"record_gradient_norms: kind must be 'l1' or 'l2', got {kind!r}"
        )
    try:
        length = operator.index(length)
    except TypeError as error:
        raise TypeError(
            "record_gradient_norms: length must be an integer known when the chain is"
            f" built, got {length!r}; under optax.inject_hyperparams name it in"
            " static_args"
        ) from error
    if length < 1:
        raise ValueError(
            f"record_gradient_norms: length must be at least 1, got {length}"
        )
    measure = {"l1": _l1, "l2": _l2}[kind]

    def init(params: optax.Params) -> RecordGradientNormsState:
        del params
        return RecordGradientNormsState(
            jnp.zeros((), jnp.int32), jnp.zeros(length, jnp.float32)
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RecordGradientNormsState]:
        del params, extra_args
        norm = measure(jax.tree.leaves(updates))
        place = state.count % length
        norms = state.norms.at[place].set(norm.astype(jnp.float32))
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, RecordGradientNormsState(count, norms)

    return optax.GradientTransformationExtraArgs(init, update)


def gradient_norms(state: Any) -> np.ndarray:
    """Reads the norms that a `record_gradient_norms` in a chain has kept.

    Args:
      state: State of a chain with one such link, however nested; an `nnx.Optimizer`'s
        `opt_state` too.

    Returns:
      The norms in the order of the steps, shape (steps,), float32, on the host: of all
      updates so far or, when there were more, of the latest `length`.

    Raises:
      ValueError: If the state has no such link or several, or is that of several runs
        under `jax.vmap`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import probes
      >>> tx = probes.record_gradient_norms("l1", length=2)
      >>> state = tx.init(None)
      >>> for size in (1.0, 2.0, 3.0):
      ...     _, state = tx.update(jnp.array([size, -size]), state)
      >>> print(probes.gradient_norms(state))
      [4. 6.]
    """
    link = _in_a_state.only_link(
        "gradient_norms", "record_gradient_norms", RecordGradientNormsState, state
    )
    # A variable of nnx is a tree with one leaf, the array.
    count, norms = map(np.asarray, jax.tree.leaves(link))
    if count.ndim:
        raise ValueError(
            f"gradient_norms: the state is of {count.size} runs; take one of them, as"
            " in jax.tree.map(lambda x: x[0], state)"
        )
    if count <= len(norms):
        return norms[:count].copy()
    return np.roll(norms, -(count % len(norms)))


def _magnitude(leaf: jax.Array) -> jax.Array:
    """Absolute values in float32 or wider."""
    size = jnp.abs(leaf)
    return size.astype(jnp.promote_types(size.dtype, jnp.float32))


def _l1(leaves: list[jax.Array]) -> jax.Array:
    return jnp.asarray(sum(jnp.sum(_magnitude(leaf)) for leaf in leaves), float)


def _l2(leaves: list[jax.Array]) -> jax.Array:
    total = _sum_of_squares(leaves, 1.0)
    # float32 squares overflow from 2e19 on and are zero below 1e-23. Only there it is
    # worth another look, at the largest entry, which takes several times as long.
    return lax.cond(
        (total > 1e-24) & (total < jnp.inf),
        lambda: jnp.sqrt(total),
        lambda: _scaled_l2(leaves),
    )


def _scaled_l2(leaves: list[jax.Array]) -> jax.Array:
    largest = jnp.zeros((), float)
    for leaf in leaves:
        peak = jnp.max(_magnitude(leaf), initial=0.0)
        largest = jnp.maximum(largest, peak.astype(float))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return unit * jnp.sqrt(_sum_of_squares(leaves, unit))


def _sum_of_squares(leaves: list[jax.Array], unit: float | jax.Array) -> jax.Array:
    # Of the leaves, not of their magnitudes: those would be written to memory.
    sums = (jnp.sum(jnp.square(_magnitude(leaf) / unit)) for leaf in leaves)
    return jnp.asarray(sum(sums), float)
