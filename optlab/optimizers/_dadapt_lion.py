"""D-Adaptation of Lion: the learning rate is an estimate of the distance to go."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _distance


class DadaptLionState(NamedTuple):
    """State of `dadapt_lion`; trees are shaped like the parameters, float32 or wider.

    Attributes:
      count: Updates that have moved something, shape (), int32.
      d: Estimate of the distance, after the latest update; 0 before the first; shape
        (), float32 (or float64).
      numerator: Mean progress along the signs, alike.
      mu: Mean of the gradients times their rates.
      s: Mean of the signs times their rates.
      rate: Step and factor eta, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    d: jax.Array
    numerator: jax.Array
    mu: Any
    s: Any
    rate: Any


def dadapt_lion(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.99,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    d0: float | jax.Array = 1e-6,
    growth_rate: float | jax.Array = _distance.INFINITE,
) -> optax.GradientTransformationExtraArgs:
    """Lion that finds its own learning rate: leave `learning_rate` at 1.

    The rate is a = d_t eta_t, and d_t grows as long as signs agree with those before.
    With q = sqrt(b2), sums over all leaves together,

        u_t = sign(b1 m_t + (1 - b1) g_t)
        m_{t+1} = b2 m_t + (1 - b2) a g_t
        r_{t+1} = q r_t + (1 - q) a <u_t, s_t>
        s_{t+1} = q s_t + (1 - q) a u_t
        h = r_{t+1} / ((1 - q) ||s_{t+1}||_1)
        d_{t+1} = max(d_t, min(h, growth_rate d_t))
        x_{t+1} = x_t - a (u_t + weight_decay x_t)

    The rate a in m makes the momentum weigh little in the sign while rates are small,
    and grow with them; that keeps d from running away. Steps of one size do not shrink
    by themselves: let the factor fall to zero. State: 8 bytes a parameter in float32.

    Args:
      learning_rate: Factor eta on d: a number, a scalar array or a schedule.
      b1: Weight of the momentum in the direction, in [0, 1).
      b2: Decay of the momentum, in [0, 1).
      weight_decay: Decoupled decay, multiplied by the whole rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      d0: First estimate, above 0 and far below any that makes sense.
      growth_rate: Largest factor from one d to the next, at least 1; 1.02 is a kind of
        warm-up.

    Returns:
      A transformation that needs the parameters. d, sums and means are float32 or wider
      whatever the parameters' dtype; updates keep theirs. Before the first gradient
      that is not zero, and at a factor of zero, nothing moves. An estimate that is not
      finite leaves d as it was.

    Raises:
      TypeError: If an update comes without the parameters.
      ValueError: If a number is out of range, or learning_rate is a schedule for each
        group.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.dadapt_lion()
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for step in range(61):  # the loss is half the square of w
      ...     updates, state = update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     if step % 20 == 0:
      ...         print(f"{step:2d} {state.d:.0e} {w[0]:.3f}")
       0 1e-06 1.000
      20 6e-04 0.999
      40 6e-01 -0.354
      60 9e-01 -0.450

    Source:
      The authors' code of A. Defazio, K. Mishchenko, "Learning-rate-free learning by
      D-Adaptation", 2023, arXiv:2301.07733 (3.2), where it is called experimental; the
      paper has no Lion. UNVERIFIED by recorded numbers. Without the a in m, as Lion has
      it, d grew without end on our tasks. growth_rate is ours.
    """
    who = "dadapt_lion"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_nonnegative(who, weight_decay=weight_decay)
    _distance.require_estimate(who, learning_rate, d0, growth_rate)
    link = links.scale_by_learning_rate(learning_rate)
    q = b2**0.5

    def init(params: optax.Params) -> DadaptLionState:
        mu, s = (optax.tree.zeros_like(links.widen(params)) for _ in range(2))
        d, numerator = _distance.numbers(2)
        count, rate = jnp.zeros((), jnp.int32), link.init(params)
        return DadaptLionState(count, d, numerator, mu, s, rate)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DadaptLionState]:
        del extra_args
        links.require_params(who, params)
        g, x = links.widen(updates), links.widen(params)
        rate: Any = link.update(jnp.ones(()), state.rate)[1]
        t = jnp.asarray(optax.safe_increment(state.count))
        d, eta = jnp.maximum(state.d, d0), rate.learning_rate
        a = d * eta

        u = jax.tree.map(lambda m, g: jnp.sign(b1 * m + (1 - b1) * g), state.mu, g)
        progress = a * links.inner_product(u, state.s)
        numerator = q * state.numerator + (1 - q) * progress
        s = jax.tree.map(lambda s, u: q * s + (1 - q) * a * u, state.s, u)
        size = _distance.absolute_sum(s)
        d = _distance.grown(d, numerator / ((1 - q) * size), growth_rate)
        moves = _distance.moves(size, eta, d)

        mu = jax.tree.map(lambda m, g: b2 * m + (1 - b2) * a * g, state.mu, g)
        numerator = _distance.sound(numerator, state.numerator)
        new = DadaptLionState(t, d, numerator, mu, s, rate)
        u = _distance.decayed(u, _distance.decays(weight_decay, mask, x), x)
        step = jax.tree.map(lambda u: a * u, u)
        out = _distance.steps(moves, step, updates)
        return out, _distance.held(moves, new, state)

    return optax.GradientTransformationExtraArgs(init, update)
