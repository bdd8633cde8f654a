"""D-Adaptation of Adam: the learning rate is an estimate of the distance to go."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _distance


class DadaptAdamState(NamedTuple):
    """State of `dadapt_adam`; trees are shaped like the parameters, float32 or wider.

    Attributes:
      count: Updates that have moved something, shape (), int32.
      d: Estimate of the distance, after the latest update; 0 before the first; shape
        (), float32 (or float64).
      numerator: Mean progress along the gradients, alike.
      mu: Mean gradient, times the rates of its steps.
      nu: Mean square of the gradient.
      s: Slower mean of the same as mu.
      rate: Step and factor eta, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    d: jax.Array
    numerator: jax.Array
    mu: Any
    nu: Any
    s: Any
    rate: Any


def dadapt_adam(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    decoupled: bool = False,
    mask: Any = None,
    bias_correction: bool = False,
    d0: float | jax.Array = 1e-6,
    growth_rate: float | jax.Array = _distance.INFINITE,
) -> optax.GradientTransformationExtraArgs:
    """Adam that finds its own learning rate: leave `learning_rate` at 1.

    The rate is d_t eta_t, and d_t estimates, in theory from below, how far the solution
    is from the start. As long as gradients agree with those before, d grows. With
    q = sqrt(b2), sums over all leaves together,

        a = d_t eta_t, times sqrt(1 - b2^t) / (1 - b1^t) if bias_correction
        r_{t+1} = q r_t + (1 - q) a <g_t, s_t / (sqrt(v_t) + eps)>
        m_{t+1} = b1 m_t + (1 - b1) a g_t
        v_{t+1} = b2 v_t + (1 - b2) g_t^2
        s_{t+1} = q s_t + (1 - q) a g_t
        h = r_{t+1} / ((1 - q) ||s_{t+1}||_1)
        d_{t+1} = max(d_t, min(h, growth_rate d_t))
        x_{t+1} = x_t - m_{t+1} / (sqrt(v_{t+1}) + eps) - a weight_decay x_t

    State: 12 bytes a parameter in float32.

    Args:
      learning_rate: Factor eta on d: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient, above 0.
      weight_decay: Decay, see `decoupled`.
      decoupled: Whether weights decay beside the step, as above, or weight_decay x_t is
        added to the gradient.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      bias_correction: Whether the rate is corrected for means that start at zero.
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
      >>> tx = optimizers.dadapt_adam()
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for step in range(61):  # the loss is half the square of w
      ...     updates, state = update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     if step % 20 == 0:
      ...         print(f"{step:2d} {state.d:.0e} {w[0]:.3f}")
       0 1e-06 1.000
      20 5e+00 1.891
      40 5e+00 -0.487
      60 5e+00 -0.174

    Source:
      A. Defazio, K. Mishchenko, "Learning-rate-free learning by D-Adaptation", 2023,
      arXiv:2301.07733, and the authors' code (3.2), without its factors for layers.
      Differs from `optax.contrib.dadapt_adamw` (0.2.8): that is NaN after a first
      gradient of zero, always corrects the rate, and lacks growth_rate and the decay in
      the gradient.
    """
    who = "dadapt_adam"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_positive(who, eps=eps)
    links.require_nonnegative(who, weight_decay=weight_decay)
    _distance.require_estimate(who, learning_rate, d0, growth_rate)
    link = links.scale_by_learning_rate(learning_rate)
    q = b2**0.5

    def init(params: optax.Params) -> DadaptAdamState:
        mu, nu, s = (optax.tree.zeros_like(links.widen(params)) for _ in range(3))
        d, numerator = _distance.numbers(2)
        count, rate = jnp.zeros((), jnp.int32), link.init(params)
        return DadaptAdamState(count, d, numerator, mu, nu, s, rate)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DadaptAdamState]:
        del extra_args
        links.require_params(who, params)
        g, x = links.widen(updates), links.widen(params)
        decay = _distance.decays(weight_decay, mask, x)
        if not decoupled:
            g = _distance.decayed(g, decay, x)
        rate: Any = link.update(jnp.ones(()), state.rate)[1]
        t = jnp.asarray(optax.safe_increment(state.count))
        d, eta = jnp.maximum(state.d, d0), rate.learning_rate
        a = d * eta
        if bias_correction:
            a = a * jnp.sqrt(1 - b2**t) / (1 - b1**t)

        ahead = jax.tree.map(lambda s, v: s / (jnp.sqrt(v) + eps), state.s, state.nu)
        numerator = q * state.numerator + (1 - q) * a * links.inner_product(g, ahead)
        s = jax.tree.map(lambda s, g: q * s + (1 - q) * a * g, state.s, g)
        size = _distance.absolute_sum(s)
        d = _distance.grown(d, numerator / ((1 - q) * size), growth_rate)
        moves = _distance.moves(size, eta, d)

        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * a * g, state.mu, g)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, g)
        numerator = _distance.sound(numerator, state.numerator)
        new = DadaptAdamState(t, d, numerator, mu, nu, s, rate)
        new = _distance.held(moves, new, state)
        u = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), new.mu, new.nu)
        if decoupled:
            u = _distance.decayed(u, decay, x, a)
        return _distance.steps(moves, u, updates), new

    return optax.GradientTransformationExtraArgs(init, update)
