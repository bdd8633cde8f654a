"""Promises about where the steps lead: downhill, and along a reference."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import trees
from optlab.testing import _compare
from optlab.testing._report import Broken, NotApplicable
from optlab.testing._subject import STEPS, Subject

DESCENT_STEPS = 200
# From 1e-4 to 1 by half decades: the promise is descent, not tuning.
RATES = tuple(10.0 ** (k / 2) for k in range(-8, 1))
# Share of the first loss that must be gone with the best of those rates.
DROP = 0.8
# A float32 update against a float64 one: Adam's 1 - 0.999^t is off by 3e-5 in float32.
REFERENCE_TOLERANCE = 1e-4


def quadratic(params: Any) -> jax.Array:
    """Half the sum of c_i x_i^2 with curvatures c from 0.5 to 2."""

    def leaf(x: jax.Array) -> jax.Array:
        curvature = jnp.linspace(0.5, 2.0, x.size, dtype=x.dtype).reshape(x.shape)
        return 0.5 * jnp.sum(curvature * x * x)

    return jnp.asarray(optax.tree.sum(jax.tree.map(leaf, params)))


def rosenbrock(params: Any) -> jax.Array:
    """Rosenbrock's valley over the pairs of neighbours of each leaf, (1 - x)^2 else."""

    def leaf(x: jax.Array) -> jax.Array:
        flat = x.ravel()
        pairs = x.size // 2
        a, b = flat[:pairs], flat[pairs : 2 * pairs]
        valley = 100 * jnp.sum((b - a * a) ** 2) + jnp.sum((1 - a) ** 2)
        return valley + jnp.sum((1 - flat[2 * pairs :]) ** 2)

    return jnp.asarray(optax.tree.sum(jax.tree.map(leaf, params)))


LANDSCAPES = (quadratic, rosenbrock)


def descends_quadratic(subject: Subject) -> str:
    """The loss of a quadratic falls, with some rate, to a fifth or less."""
    return _require_descent(subject, 0)


def descends_rosenbrock(subject: Subject) -> str:
    """The loss of Rosenbrock's function falls, with some rate, to a fifth or less."""
    return _require_descent(subject, 1)


def follows_reference(subject: Subject) -> str:
    """The updates are those of an independent float64 computation."""
    if subject.reference is None:
        raise NotApplicable("no reference given")
    double = functools.partial(jax.tree.map, _compare.wide)
    grads = [double(subject.gradients(k)) for k in range(STEPS)]
    points = [double(subject.params)]
    points += subject.reference(points[0], grads)
    worst, where = 0.0, ""
    for k, point in enumerate(subject.trajectory()[1:]):
        # Updates, because parameters of float32 round off what a small one adds.
        wanted = jax.tree.map(np.subtract, points[k + 1], points[k])
        worst, where = max((worst, where), _compare.gap(point.updates, wanted))
    return _compare.require_small(worst, where, REFERENCE_TOLERANCE)


def _require_descent(subject: Subject, landscape: int) -> str:
    rates, losses = subject.once(_descents)
    first, final = losses[landscape]
    # A rate that the caller has fixed may be small, but must not lead uphill.
    allowed = first if rates is None else (1 - DROP) * first
    if not np.nanmin(np.append(final, np.inf)) < allowed:
        raise Broken(f"from {first:.3g} to {final} in {DESCENT_STEPS} steps")
    best = int(np.nanargmin(final))
    at = "" if rates is None else f" with rate {rates[best]:.0e}"
    return f"from {first:.3g} to {final[best]:.2g} in {DESCENT_STEPS} steps{at}"


def _descents(subject: Subject) -> tuple[tuple[float, ...] | None, list[Any]]:
    """Descends both landscapes with every rate, in one compiled program."""
    ruled = _ruled_by_the_rate(subject)

    def loss(landscape: jax.Array, params: Any) -> jax.Array:
        return jax.lax.switch(landscape, LANDSCAPES, ruled(params))

    def descend(landscape: jax.Array, rate: jax.Array) -> jax.Array:
        tx = optax.with_extra_args_support(
            subject.build(learning_rate=rate) if has_rate else subject.tx
        )
        here = functools.partial(loss, landscape)

        def body(carry, _):
            params, state = carry
            grads = jax.grad(here)(params)
            extra = subject.extra_args(params, grads, here)
            updates, state = tx.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        start = (subject.params, tx.init(subject.params))
        (params, _), _ = jax.lax.scan(body, start, length=DESCENT_STEPS)
        return here(params)

    has_rate = "learning_rate" in subject.defaults
    rates = jnp.asarray(RATES if has_rate else (0.0,))
    run = jax.jit(lambda k: jax.lax.map(lambda rate: descend(k, rate), rates))
    losses = [
        (float(landscape(ruled(subject.params))), np.asarray(run(k)))
        for k, landscape in enumerate(LANDSCAPES)
    ]
    return RATES if has_rate else None, losses


def _ruled_by_the_rate(subject: Subject) -> Callable[[Any], list[jax.Array]]:
    """Picks the matrices where a row has a rule, and a rate, for matrices only."""
    for_matrices = subject.row is not None and subject.row.applies_to == "matrix"
    labels = trees.labels(trees.matrix_views(subject.params))
    chosen = [
        label == "matrix" or not for_matrices for label in jax.tree.leaves(labels)
    ]
    return lambda params: list(itertools.compress(jax.tree.leaves(params), chosen))
