"""DoG, L-DoG and DoWG: the way gone so far over the length of all gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _averages, _distance, _scale


class DogState(NamedTuple):
    """State of `dog`, `ldog` and `dowg`; trees are float32 or wider.

    Attributes:
      count: Updates that have moved something, shape (), int32.
      distance: Largest distance from the start so far, a tuple of one number or of one
        for each layer of each leaf; 0 before the first update; float32 or wider.
      gradients: Root of the sum of all squared gradients, alike.
      displacement: Sum of the updates, shaped like the parameters.
      average: Average of the parameters, alike; None without one.
      rate: Step and factor eta, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    distance: Any
    gradients: Any
    displacement: Any
    average: Any
    rate: Any


def dog(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    initial_distance: float | jax.Array = 1e-6,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    gamma: float | jax.Array | None = 8.0,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the distance over the gradients for a rate.

    Leave `learning_rate` at 1, and evaluate and save the average of the iterates, which
    `dog_params` reads from the state: the rate does not fall, so that averaging is a
    part of the method. With sums over all leaves together, and t from 1,

        r_t = max(r_{t-1}, ||x_t - x_1||)     r_0 = initial_distance (1 + ||x_1||)
        G_t = G_{t-1} + ||g_t||^2             g_t with weight_decay x_t in it
        x_{t+1} = x_t - eta_t r_t / sqrt(G_t + eps) g_t
        y_t = y_{t-1} + c (x_{t+1} - y_{t-1}),   c = (1 + gamma) / (t + gamma)

    The average y weighs late iterates more, the more so the larger gamma. State: 8
    bytes a parameter in float32.

    Args:
      learning_rate: Factor eta: a number, a scalar array or a schedule.
      initial_distance: First distance, relative to 1 and the length of the parameters,
        above 0; 1e-4 for models with batch normalisation.
      eps: Added once to the sum of squares, 0 or more.
      weight_decay: Decay in the gradient.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      gamma: How fast the average forgets, 0 or more; at 0 all iterates weigh alike.
        None keeps no average.

    Returns:
      A transformation that needs the parameters. Distances and lengths are float32 or
      wider whatever the parameters' dtype; updates keep theirs. Before the first
      gradient that is not zero, and at a factor of zero, nothing moves and nothing is
      counted; nor with a gradient that is not finite.

    Raises:
      TypeError: If an update comes without the parameters.
      ValueError: If a number is out of range, or learning_rate is a schedule for each
        group.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.dog()
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for step in range(151):  # the loss is half the square of w
      ...     updates, state = update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     if step % 50 == 0:
      ...         mean = optimizers.dog_params(state, w)
      ...         print(f"{step:3d} {state.distance[0]:.0e} {w[0]:.3f} {mean[0]:.3f}")
        0 5e-06 1.000 1.000
       50 1e-01 0.957 0.974
      100 4e+00 0.041 0.177
      150 4e+00 0.000 0.007

    Source:
      M. Ivgi, O. Hinder, Y. Carmon, "DoG is SGD's best friend", 2023, arXiv:2302.12022,
      and the authors' code (1.1.0) with its averager. Differs from it: x_t - x_1 is the
      sum of the updates, kept in float32, because in bfloat16 parameters the first
      steps of 1e-6 are rounded off and it would be zero for ever. Differs from
      `optax.contrib.dog` (0.2.8): that adds up squares in the parameters' dtype, which
      in bfloat16 stops at 256, measures from the parameters of `init`, has no average.
    """
    return _over_gradients(
        "dog", learning_rate, initial_distance, eps, weight_decay, mask, gamma
    )


def ldog(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    initial_distance: float | jax.Array = 1e-6,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    gamma: float | jax.Array | None = 8.0,
    views: Any = _scale.column_views,
) -> optax.GradientTransformationExtraArgs:
    """DoG for each layer by itself: flat layers do not wait for steep ones.

    As `dog`, with the distance and the sum of squares of each layer: each matrix of a
    stack, and of what is no matrix each vector along the last axis, so that a stack of
    layers moves as the layers on their own. Evaluate `dog_params(state, params)`.
    State: 8 bytes a parameter in float32, and 8 a layer.

    Args:
      learning_rate: Factor eta: a number, a scalar array or a schedule.
      initial_distance: First distance, relative to 1 and the length of the layer.
      eps: Added once to the sum of squares, 0 or more.
      weight_decay: Decay in the gradient.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      gamma: How fast the average forgets, 0 or more; None keeps no average.
      views: Tree of `trees.MatrixView` or a function to it: what a layer is.

    Returns:
      A transformation that needs the parameters, see `dog`. What is said there of
      gradients that are zero or not finite is so for each layer.

    Raises:
      TypeError: As `dog`.
      ValueError: As `dog`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> ends = {}
      >>> for make in (optimizers.dog, optimizers.ldog):
      ...     tx, w = make(), {"flat": jnp.ones(2), "steep": jnp.ones(2)}
      ...     state, update = tx.init(w), jax.jit(tx.update)
      ...     for _ in range(300):
      ...         g = {"flat": 1e-4 * w["flat"], "steep": w["steep"]}
      ...         updates, state = update(g, state, w)
      ...         w = optax.apply_updates(w, updates)
      ...     print(f"{w['steep'][0]:.3f} {w['flat'][0]:.3f}")
      0.000 0.997
      0.000 0.000

    Source:
      As `dog`. Differs from the authors' code: that takes a tensor for a layer, and
      knows no stacks.
    """
    return _over_gradients(
        "ldog", learning_rate, initial_distance, eps, weight_decay, mask, gamma, views
    )


def dowg(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    initial_distance: float | jax.Array = 1e-6,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    gamma: float | jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DoG that forgets the gradients of the time when it was near the start.

    Squares are weighted with the distance of their time: old ones, seen when steps were
    tiny, do not hold later steps back. With r_t and y_t as in `dog`,

        v_t = v_{t-1} + r_t^2 ||g_t||^2
        x_{t+1} = x_t - eta_t r_t^2 / sqrt(v_t) g_t

    State: 4 bytes a parameter in float32, and 4 with an average.

    Args:
      learning_rate: Factor eta: a number, a scalar array or a schedule.
      initial_distance: First distance, relative to 1 and the length of the parameters,
        above 0.
      weight_decay: Decay in the gradient.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      gamma: None, or how fast an average for `dog_params` forgets, as in `dog`.

    Returns:
      A transformation that needs the parameters, see `dog`.

    Raises:
      TypeError: As `dog`.
      ValueError: As `dog`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.dowg()
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for step in range(41):  # the loss is half the square of w
      ...     updates, state = update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     if step % 10 == 0:
      ...         print(f"{step:2d} {state.distance[0]:.0e} {w[0]:.3f}")
       0 5e-06 1.000
      10 1e-03 1.000
      20 4e-01 0.790
      30 5e+00 0.218
      40 5e+00 0.000

    Source:
      A. Khaled, K. Mishchenko, C. Jin, "DoWG unleashed: an efficient universal
      parameter-free gradient descent method", 2023, arXiv:2305.16284. UNVERIFIED
      against code of the authors, of which there is none; the first distance is DoG's.
      Differs from `optax.contrib.dowg` (0.2.8): a first squared distance of 1e-4
      whatever the parameters' size, and 1e-4 added to the root.
    """
    return _over_gradients(
        "dowg",
        learning_rate,
        initial_distance,
        0.0,
        weight_decay,
        mask,
        gamma,
        weighted=True,
    )


def dog_params(state: Any, params: Any) -> Any:
    """Returns the parameters to evaluate and to save, the average y of `dog`.

    Args:
      state: State of `dog`, `ldog` or `dowg`, or of anything around it: `optax.chain`,
        `masked`, `partition`, `MultiSteps`, `inject_hyperparams`, an `nnx.Optimizer`'s.
      params: The parameters that are trained; leaves that none of these methods trains
        are returned as they are.

    Returns:
      A tree shaped like the parameters, of their dtypes; before the first update, and
      if no average is kept, the parameters.

    Raises:
      ValueError: If there is no state of these methods inside.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optax.chain(optax.clip(1.0), optimizers.dog(initial_distance=0.1))
      >>> w = jnp.ones(1)
      >>> state = tx.init(w)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.ones(1), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> print(f"{w[0]:.3f} {optimizers.dog_params(state, w)[0]:.3f}")
      0.461 0.500

    Source:
      O. Shamir, T. Zhang, "Stochastic gradient descent for non-smooth optimization",
      2013, arXiv:1212.1824, as in the code of the authors of DoG.
    """
    return _averages.evaluated("dog", DogState, "average", state, params)


def _over_gradients(
    who: str,
    learning_rate: Any,
    initial_distance: Any,
    eps: Any,
    weight_decay: Any,
    mask: Any,
    gamma: Any,
    views: Any = None,
    weighted: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Makes the three methods: without views all leaves together are one layer."""
    links.require_one_rate(who, learning_rate)
    links.require_positive(who, initial_distance=initial_distance)
    links.require_nonnegative(who, eps=eps, weight_decay=weight_decay)
    if gamma is not None:
        links.require_nonnegative(who, gamma=gamma)
    link = links.scale_by_learning_rate(learning_rate)

    # One program: sums over devices that are started one by one may block each other.
    @jax.jit
    def first_lengths(zeros: Any) -> tuple[jax.Array, ...]:
        return tuple(map(links.settled, _lengths(zeros, views)))

    def init(params: optax.Params) -> DogState:
        zeros = [optax.tree.zeros_like(links.widen(params)) for _ in range(2)]
        one = _distance.numbers(2)
        distance, gradients = ((x,) for x in one)
        if views is not None:
            # An array, not none: Optax asks so what is not shaped like parameters.
            layers = [first_lengths(tree) for tree in zeros]
            distance, gradients = (x or y for x, y in zip(layers, one, strict=True))
        displacement, average = zeros[0], None if gamma is None else zeros[1]
        count, rate = jnp.zeros((), jnp.int32), link.init(params)
        return DogState(count, distance, gradients, displacement, average, rate)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DogState]:
        del extra_args
        links.require_params(who, params)
        rate: Any = link.update(jnp.ones(()), state.rate)[1]
        if not jax.tree.leaves(params):
            return updates, state._replace(rate=rate)
        g, x = links.widen(updates), links.widen(params)
        g = _distance.decayed(g, _distance.decays(weight_decay, mask, x), x)
        old = (state.distance, state.gradients)
        sizes = [_lengths(tree, views) for tree in (x, g, state.displacement)]
        eta = rate.learning_rate
        rows = [
            _one_layer(eta, initial_distance, eps, weighted, *row)
            for row in zip(*old, *sizes, strict=True)
        ]
        moves, far, root, a = zip(*rows, strict=True)
        any_moves = jnp.any(jnp.stack([jnp.any(yes) for yes in moves]))
        t = jnp.where(any_moves, optax.safe_increment(state.count), state.count)

        step = _taken(moves, a, g)
        way = jax.tree.map(_sum, state.displacement, step)
        average = state.average
        if gamma is not None:
            c = jnp.where(any_moves, (1 + gamma) / (jnp.maximum(t, 1) + gamma), 0)
            average = jax.tree.map(
                lambda y, x, u: (y + c * (x + u - y)).astype(y.dtype), average, x, step
            )
        out = jax.tree.map(lambda u, g: u.astype(g.dtype), step, updates)
        return out, DogState(t, far, root, way, average, rate)

    return optax.GradientTransformationExtraArgs(init, update)


def _lengths(tree: Any, views: Any) -> list[jax.Array]:
    """Returns the length of the tree, or those of the layers of each leaf."""
    if views is None:
        return [links.tree_norm(tree)]
    axes = links.layer_axes(tree, views, vectors=True)
    leaves = zip(jax.tree.leaves(tree), axes, strict=True)
    return [links.norm_over(x, own or ()) for x, own in leaves]


def _one_layer(
    eta: Any,
    initial_distance: Any,
    eps: Any,
    weighted: bool,
    r: Any,
    total: Any,
    size: Any,
    n: Any,
    gone: Any,
) -> Any:
    """Returns whether a layer moves, its distance, the root of its sum, its rate."""
    far = jnp.where(r == 0, initial_distance * (1 + size), r)
    far = jnp.maximum(far, gone)
    weight = far if weighted else 1.0
    # Roots and not squares are added up: those of 1e30 overflow.
    root = jnp.hypot(total, weight * n)
    moves = (root > 0) & jnp.isfinite(root) & (eta != 0)
    below = jnp.where(moves, jnp.hypot(root, jnp.sqrt(eps)), 1)
    far_and_root = (
        links.settled(jnp.where(moves, new, old).astype(old.dtype))
        for new, old in ((far, r), (root, total))
    )
    return moves, *far_and_root, eta * far * (weight / below)


def _taken(moves: Any, rates: Any, gradients: Any) -> Any:
    """Returns the steps: one rate for all leaves, or one for each layer of each."""
    leaves, structure = jax.tree.flatten(gradients)
    times = len(leaves) // len(rates)
    rows = zip(moves * times, rates * times, leaves, strict=True)
    return structure.unflatten([jnp.where(yes, -a * g, 0) for yes, a, g in rows])


def _sum(x: jax.Array, u: jax.Array) -> jax.Array:
    """Returns x + u in the dtype of x."""
    return (x + u).astype(x.dtype)
