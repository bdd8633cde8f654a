"""Optimistic mirror descent: steps that foresee the next gradient as the last one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees

MIRRORS = ("euclidean", "entropic")


class OptimisticMirrorDescentState(NamedTuple):
    """State of `optimistic_mirror_descent`.

    Attributes:
      rate: State of `links.scale_by_learning_rate`: step and rate.
      previous: Last gradient, shaped like the parameters, float32 or wider; () with a
        projection or the entropic mirror.
      secondary: Secondary iterate, alike, with the entropic mirror its logarithm; ()
        otherwise. Zeros until the first update takes it from the parameters.
    """

    rate: Any
    previous: Any
    secondary: Any


def optimistic_mirror_descent(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    mirror: str = "euclidean",
    projection: Any = None,
    axis: int = -1,
) -> optax.GradientTransformationExtraArgs:
    """Mirror descent that plays as if the last gradient came again, for games too.

    Where plain descent circles outwards, as two players of a bilinear game do, this
    spirals in. The parameters are the plays x_t; xh is a second iterate and D the
    distance of the mirror,

        x_t      = argmin_x eta_t <g_{t-1}, x> + D(x, xh_t),   g_0 = 0
        xh_{t+1} = argmin_x eta_t <g_t, x>     + D(x, xh_t),   g_t taken at x_t

        euclidean   x_t = P(xh_t - eta_t g_{t-1}),     xh_{t+1} = P(xh_t - eta_t g_t)
        entropic    x_t ~ xh_t exp(-eta_t g_{t-1}),  xh_{t+1} ~ xh_t exp(-eta_t g_t),
                    each divided by its sum over `axis`

    The first play is x_1 = xh_1, the parameters as they come. The update of step t
    makes xh_{t+1} at the rate of step t, and the next play x_{t+1} at that of step
    t + 1: a schedule is asked for both. Under `optax.inject_hyperparams` the rate to
    come is not known, and both are that of step t. Without a projection xh drops out,

        x_{t+1} = x_t - eta_t (g_t - g_{t-1}) - eta_{t+1} g_t

    State: 4 bytes a parameter in float32, either g or xh.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      mirror: 'euclidean', or 'entropic' for leaves of probabilities.
      projection: P, from a tree like the parameters to the nearest one in a convex
        set, such as those of `optax.projections` (most are of the whole tree, not of
        each leaf); None for no bounds. Start inside of the set.
      axis: Axis of every leaf over which probabilities sum to one; for 'entropic'.

    Returns:
      A transformation, the last of its chain: its updates already have rate and sign.
      With 'entropic' entries never become negative. One that starts at or below zero is
      taken for zero and stays there, a slice is divided by its sum, and one without a
      positive entry starts uniform; the logarithm is kept, so that a probability too
      small for its dtype can come back.

    Raises:
      ValueError: If the mirror is unknown, has a projection and is not euclidean, or a
        leaf has no such axis.
      TypeError: If the projection is no function, or an update with a projection or the
        entropic mirror comes without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.optimistic_mirror_descent(0.5, mirror="entropic")
      >>> w = jnp.full(3, 1 / 3)
      >>> updates, state = tx.update(jnp.array([1.0, 0.0, 0.0]), tx.init(w), w)
      >>> [f"{entry:.4f}" for entry in w + updates]
      ['0.1554', '0.4223', '0.4223']
      >>> [f"{entry:.4f}" for entry in jnp.exp(state.secondary)]
      ['0.2327', '0.3837', '0.3837']

    Source:
      Chen et al., "Optimistic online mirror descent for bridging stochastic and
      adversarial online convex optimization", 2023, arXiv:2302.04552. UNVERIFIED
      against its text. Its step sizes from sums of ||g_t - g_{t-1}||^2 are not here:
      their constants could not be confirmed. Differs from
      `optax.optimistic_gradient_descent`, which is unbounded and whose first step is
      eta g_1, half of this one's: it takes g_0 for g_1.
    """
    _check(mirror, projection)
    rate = links.scale_by_learning_rate(learning_rate)
    free = mirror == "euclidean" and projection is None

    def init(params: optax.Params) -> OptimisticMirrorDescentState:
        if mirror == "entropic":
            jax.tree_util.tree_map_with_path(
                lambda path, x: _require_axis(path, x, axis), params
            )
        zeros = optax.tree.zeros_like(params)
        kept = (zeros, ()) if free else ((), zeros)
        return OptimisticMirrorDescentState(rate.init(params), *kept)

    def move(point: Any, step: Any) -> Any:
        moved = jax.tree.map(jnp.add, point, step)
        if projection is not None:
            return projection(moved)
        return jax.tree.map(lambda x: _log_normalized(x, axis), moved)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OptimisticMirrorDescentState]:
        del extra_args
        step, now = rate.update(updates, state.rate)
        ahead, _ = rate.update(updates, now)
        if free:
            back, _ = rate.update(state.previous, state.rate)
            out = jax.tree.map(lambda a, b, c: a + b - c, step, ahead, back)
            previous = _like(updates, state.previous)
            return out, OptimisticMirrorDescentState(now, previous, ())
        links.require_params("optimistic_mirror_descent", params)
        start = params
        if mirror == "entropic":
            start = jax.tree.map(lambda x: _logarithm(x, axis), params)
        secondary = jax.tree.map(
            lambda new, old: jnp.where(state.rate.count == 0, new, old),
            start,
            state.secondary,
        )
        secondary = move(secondary, step)
        play = move(secondary, ahead)
        if mirror == "entropic":
            play = jax.tree.map(jnp.exp, play)
        out = jax.tree.map(jnp.subtract, play, params)
        secondary = _like(secondary, state.secondary)
        return out, OptimisticMirrorDescentState(now, (), secondary)

    return links.in_float32(optax.GradientTransformationExtraArgs(init, update))


def _check(mirror: str, projection: Any) -> None:
    who = "optimistic_mirror_descent"
    if mirror not in MIRRORS:
        raise ValueError(f"{who}: mirror must be one of {MIRRORS}, got {mirror!r}")
    if projection is None:
        return
    if not callable(projection):
        raise TypeError(
            f"{who}: projection must be a function from tree to tree, such as"
            f" optax.projections.projection_non_negative, got {projection!r}"
        )
    if mirror == "entropic":
        raise ValueError(
            f"{who}: the entropic mirror stays on the simplex by itself; leave"
            " projection out, or take mirror='euclidean'"
        )


def _like(tree: Any, buffer: Any) -> Any:
    """Gives a tree the dtypes of the buffer that it replaces."""
    return jax.tree.map(lambda x, old: x.astype(old.dtype), tree, buffer)


def _require_axis(path: Any, x: Any, axis: int) -> None:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"optimistic_mirror_descent: leaf {trees.path_string(path)!r} has shape"
            f" {x.shape} and no axis {axis}; give the axis over which its entries sum"
            " to one, or route it elsewhere with optax.partition"
        )


def _logarithm(x: jax.Array, axis: int) -> jax.Array:
    """Takes the logarithm of probabilities; no positive entry is a uniform slice."""
    positive = x > 0
    log = jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)
    return jnp.where(jnp.any(positive, axis, keepdims=True), log, 0)


def _log_normalized(x: jax.Array, axis: int) -> jax.Array:
    return jax.nn.log_softmax(x, axis) if x.size else x
