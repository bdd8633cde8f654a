"""D-Adaptation of gradient descent: the rate is an estimate of the distance to go."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _distance


class DadaptSgdState(NamedTuple):
    """State of `dadapt_sgd`; trees are shaped like the parameters, float32 or wider.

    Attributes:
      count: Updates that have moved something, shape (), int32.
      d: Estimate of the distance, after the latest update; 0 before the first; shape
        (), float32 (or float64).
      numerator: Progress along the gradients, alike.
      first_norm: Norm of the first gradient that was not zero, alike.
      s: Sum of the gradients times their rates.
      momentum: Decaying sum of the same.
      rate: Step and factor eta, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    d: jax.Array
    numerator: jax.Array
    first_norm: jax.Array
    s: Any
    momentum: Any
    rate: Any


def dadapt_sgd(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    momentum: float | jax.Array = 0.0,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    d0: float | jax.Array = 1e-6,
    growth_rate: float | jax.Array = _distance.INFINITE,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent that finds its own learning rate: leave `learning_rate` at 1.

    The rate is d_t eta_t over the norm G of the first gradient, and d_t estimates, in
    theory from below, how far the solution is from the start. d never falls, and with
    momentum may end too large. Sums are over all leaves together:

        a = d_t eta_t / G,   g_t with weight_decay x_t in it
        r_{t+1} = r_t + a <g_t, s_t>
        s_{t+1} = s_t + a g_t
        h = 2 r_{t+1} / ||s_{t+1}||
        d_{t+1} = max(d_t, min(h, growth_rate d_t))
        m_{t+1} = momentum m_t + a g_t
        x_{t+1} = x_t - (1 - momentum) m_{t+1}

    State: 8 bytes a parameter in float32.

    Args:
      learning_rate: Factor eta on d: a number, a scalar array or a schedule.
      momentum: Decay of the sum that steps are made of, in [0, 1).
      weight_decay: Decay in the gradient.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      d0: First estimate, above 0 and far below any that makes sense.
      growth_rate: Largest factor from one d to the next, at least 1; 1.02 is a kind of
        warm-up.

    Returns:
      A transformation that needs the parameters. d and sums are float32 or wider
      whatever the parameters' dtype; updates keep theirs. Before the first gradient
      that is neither zero nor not finite, and at a factor of zero, nothing moves. An
      estimate that is not finite leaves d as it was.

    Raises:
      TypeError: If an update comes without the parameters.
      ValueError: If a number is out of range, or learning_rate is a schedule for each
        group.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.dadapt_sgd()
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for step in range(61):  # the loss is half the square of w
      ...     updates, state = update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     if step % 20 == 0:
      ...         print(f"{step:2d} {state.d:.0e} {w[0]:.3f}")
       0 1e-06 1.000
      20 4e-02 0.985
      40 3e+00 0.000
      60 3e+00 0.000

    Source:
      A. Defazio, K. Mishchenko, "Learning-rate-free learning by D-Adaptation", 2023,
      arXiv:2301.07733, and the authors' code (3.2). UNVERIFIED by recorded numbers: a
      float64 transcription of that code is what this is tested against. Differs from
      it: the step is written as the decaying sum m, which it is equal to, so that
      x_0 - x_t is never measured in the parameters' dtype; G has the decay in it, which
      there a result that is not kept leaves out; a first gradient of zero is passed
      over, where that divides by it.
    """
    who = "dadapt_sgd"
    links.require_decays(who, momentum=momentum)
    links.require_nonnegative(who, weight_decay=weight_decay)
    _distance.require_estimate(who, learning_rate, d0, growth_rate)
    link = links.scale_by_learning_rate(learning_rate)

    def init(params: optax.Params) -> DadaptSgdState:
        s, m = (optax.tree.zeros_like(links.widen(params)) for _ in range(2))
        d, numerator, norm = _distance.numbers(3)
        count, rate = jnp.zeros((), jnp.int32), link.init(params)
        return DadaptSgdState(count, d, numerator, norm, s, m, rate)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DadaptSgdState]:
        del extra_args
        links.require_params(who, params)
        g, x = links.widen(updates), links.widen(params)
        g = _distance.decayed(g, _distance.decays(weight_decay, mask, x), x)
        rate: Any = link.update(jnp.ones(()), state.rate)[1]
        t = jnp.asarray(optax.safe_increment(state.count))
        d, eta = jnp.maximum(state.d, d0), rate.learning_rate
        norm = jnp.where(state.count == 0, links.tree_norm(g), state.first_norm)
        known = (norm > 0) & jnp.isfinite(norm)
        a = d * eta / jnp.where(known, norm, 1)

        numerator = state.numerator + a * links.inner_product(g, state.s)
        s = jax.tree.map(lambda s, g: s + a * g, state.s, g)
        d = _distance.grown(d, 2 * numerator / links.tree_norm(s), growth_rate)
        moves = known & _distance.moves(norm, eta, d)

        m = jax.tree.map(lambda m, g: momentum * m + a * g, state.momentum, g)
        numerator = _distance.sound(numerator, state.numerator)
        new = DadaptSgdState(t, d, numerator, norm, s, m, rate)
        new = _distance.held(moves, new, state)
        u = jax.tree.map(lambda m: (1 - momentum) * m, new.momentum)
        return _distance.steps(moves, u, updates), new

    return optax.GradientTransformationExtraArgs(init, update)
