"""Hypergradient descent: the learning rate follows a gradient of its own."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links

RULES = ("additive", "multiplicative", "cosine")


class HypergradientState(NamedTuple):
    """State of `hypergradient`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      learning_rate: Rate of the latest update (before the first: of the first), shape
        (), float32 (float64 when 64-bit types are on).
      direction: The inner transformation's latest output, shaped like the parameters,
        float32 or wider; zero before the first update.
      inner_state: State of the inner transformation.
    """

    count: jax.Array
    learning_rate: jax.Array
    direction: Any
    inner_state: Any


def hypergradient(
    inner: optax.GradientTransformation,
    learning_rate: float | jax.Array,
    *,
    hyper_learning_rate: float | jax.Array,
    rule: str = "additive",
    bounds: tuple[float, float] = (0.0, math.inf),
) -> optax.GradientTransformationExtraArgs:
    """Steps along the inner direction with a rate that is learned on the way.

    The loss after a step falls with the rate as the new gradient agrees with the last
    direction. So while steps agree the rate grows, and when they turn back it shrinks;
    a first rate that is too small by far does little harm.

        u_t = inner(g_t)
        a_t = a_{t-1} + beta <g_t, u_{t-1}>                  additive
        a_t = a_{t-1} (1 + beta cos(g_t, u_{t-1}))           multiplicative
        a_t = a_{t-1} + beta cos(g_t, u_{t-1})               cosine
        w_t = w_{t-1} - a_t u_t,   a_t cut to the bounds

    Products are over all leaves together. The additive beta must suit the sizes of the
    model's gradients; the multiplicative one is the largest relative change in a step,
    that of "cosine" the largest change. A schedule of factors, such as a warm-up,
    belongs into `inner`, as in `optax.chain(optax.scale_by_adam(),
    optax.scale_by_schedule(factors))`: the rate then learns what it must be beside it.

    Args:
      inner: Transformation without a learning rate and sign, such as
        `optax.scale_by_adam()`; `optax.identity()` for plain gradient descent.
      learning_rate: Rate to start from, a number or a scalar array.
      hyper_learning_rate: Rate beta of the rate; 0 keeps the rate where it starts.
      rule: "additive", "multiplicative" or "cosine".
      bounds: Smallest and largest rate.

    Returns:
      A transformation; its state has the rate in force and one copy of the parameters
      more than the inner one's, in float32 or wider. Updates keep their dtype. A
      product that is not finite (a NaN in the gradient, norms above 1e19) and a cosine
      with a vector of norm zero (or one below 1e-23) leave the rate as it was.

    Raises:
      ValueError: If the rule is unknown, a rate is negative, or the bounds do not hold
        the first rate.
      TypeError: If the learning rate is a schedule, or inner no transformation.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> tx = wrappers.hypergradient(
      ...     optax.identity(), 1e-3, hyper_learning_rate=1e-3, rule="additive")
      >>> w = jnp.array([4.0])
      >>> state = tx.init(w)
      >>> for _ in range(10):  # the loss is half the square of w
      ...     updates, state = tx.update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> print(f"{w[0]:.3f} {state.learning_rate:.3f}")
      2.097 0.107

    Source:
      Baydin et al., 2017, arXiv:1703.04782: additive and, normalised as here, the
      multiplicative rule. UNVERIFIED against the authors' code. "cosine" is the
      additive rule with the multiplicative one's normalisation, written for this
      library.
    """
    _check(learning_rate, hyper_learning_rate, rule, bounds)
    links.require_transformation("hypergradient", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> HypergradientState:
        wide = links.widen(params)
        # A copy, because the caller's array must not be donated with the state.
        rate = jnp.array(learning_rate, dtype=float)
        direction = optax.tree.zeros_like(wide)
        return HypergradientState(
            jnp.zeros((), jnp.int32), rate, direction, inner.init(wide)
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, HypergradientState]:
        gradient, old = links.widen(updates), state.learning_rate
        slope = links.inner_product(
            gradient, state.direction, normalize=rule != "additive"
        )
        unit = old if rule == "multiplicative" else 1.0
        moved = jnp.clip(old + hyper_learning_rate * unit * slope, *bounds)
        rate = jnp.where(jnp.isfinite(slope), moved, old).astype(old.dtype)
        # The new direction is written where the old one was: no copy of that is kept.
        gradient = links.after(gradient, rate)
        direction, inner_state = inner.update(
            gradient, state.inner_state, links.widen(params), **extra_args
        )
        updates = jax.tree.map(
            lambda u, g: (-rate * u).astype(g.dtype), direction, updates
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, HypergradientState(count, rate, direction, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(learning_rate: Any, beta: Any, rule: str, bounds: Any) -> None:
    """Checks what is known when the chain is built; traced numbers pass."""
    if callable(learning_rate):
        raise TypeError(
            "hypergradient: learning_rate must be the number to start from, got a"
            " schedule; put a schedule of factors into inner, as in"
            " optax.chain(inner, optax.scale_by_schedule(factors))"
        )
    if rule not in RULES:
        raise ValueError(f"hypergradient: rule must be one of {RULES}, got {rule!r}")
    numbers = {"learning_rate": learning_rate, "hyper_learning_rate": beta}
    for name, number in numbers.items():
        if isinstance(number, int | float) and not 0 <= number < math.inf:
            raise ValueError(
                f"hypergradient: {name} must be finite and not negative, got {number}"
            )
    low, high = bounds
    known = isinstance(learning_rate, int | float)
    if not low <= (learning_rate if known else low) <= high:
        raise ValueError(
            f"hypergradient: bounds {bounds} must be in order and hold the learning"
            f" rate, got {learning_rate}"
        )
