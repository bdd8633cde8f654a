"""D-Adaptation of Adan: the learning rate is an estimate of the distance to go."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _distance

DECAY_ORDERS = ("proximal", "together")


class DadaptAdanState(NamedTuple):
    """State of `dadapt_adan`; trees are shaped like the parameters, float32 or wider.

    Attributes:
      count: Updates that have moved something, shape (), int32.
      d: Estimate of the distance, after the latest update; 0 before the first; shape
        (), float32 (or float64).
      weighted: Mean squared length of the gradients times their rates, alike.
      mean: Mean gradient, times the rates of its steps.
      change: Mean difference of successive gradients, times the same.
      square: Mean square of the gradient that looks ahead.
      previous: Last gradient.
      s: Slower mean of the same as `mean`.
      rate: Step and factor eta, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    d: jax.Array
    weighted: jax.Array
    mean: Any
    change: Any
    square: Any
    previous: Any
    s: Any
    rate: Any


def dadapt_adan(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    b1: float | jax.Array = 0.98,
    b2: float | jax.Array = 0.92,
    b3: float | jax.Array = 0.99,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.02,
    decay_order: str = "proximal",
    mask: Any = None,
    d0: float | jax.Array = 1e-6,
    growth_rate: float | jax.Array = _distance.INFINITE,
) -> optax.GradientTransformationExtraArgs:
    """Adan that finds its own learning rate: leave `learning_rate` at 1.

    The rate is a = d_t eta_t, and d_t grows as long as gradients agree with those
    before. With c_t = g_t - g_{t-1}, c_1 = 0, and sums over all leaves together,

        m_{t+1} = b1 m_t + (1 - b1) a g_t
        v_{t+1} = b2 v_t + (1 - b2) a c_t
        n_{t+1} = b3 n_t + (1 - b3) (g_t + b2 c_t)^2,   f_t = 1 / (sqrt(n_{t+1}) + eps)
        s_{t+1} = b3 s_t + (1 - b3) a g_t
        w_{t+1} = b3 w_t + (1 - b3) a^2 sum(f_t g_t^2)
        h = (sum(f_t s_{t+1}^2) / (1 - b3) - w_{t+1}) / ||s_{t+1}||_1
        d_{t+1} = max(d_t, min(h, growth_rate d_t))
        x_{t+1} = (x_t - f_t (m_{t+1} + b2 v_{t+1})) / (1 + a weight_decay)

    d never falls, and may end too large: in the example, 3 away from the solution, at
    122 without a growth_rate and at 0.7 with 1.02. A factor that falls to zero helps.
    State: 20 bytes a parameter in float32.

    Args:
      learning_rate: Factor eta on d: a number, a scalar array or a schedule.
      b1: Decay of the mean gradient, in [0, 1).
      b2: Decay of the mean difference, and its weight, in [0, 1).
      b3: Decay of the mean square and of s, in [0, 1).
      eps: Added to the root, in units of the gradient, above 0.
      weight_decay: Decoupled decay, multiplied by the whole rate.
      decay_order: 'proximal' as above; 'together' is x - u - a weight_decay x.
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
      ValueError: If a number is out of range, decay_order is unknown, or learning_rate
        is a schedule for each group.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.dadapt_adan(growth_rate=1.5)
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for step in range(61):  # the loss is half the square of w
      ...     updates, state = update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     if step % 20 == 0:
      ...         print(f"{step:2d} {state.d:.0e} {w[0]:.3f}")
       0 1e-06 1.000
      20 3e-03 0.999
      40 1e+01 0.149
      60 5e+01 -0.017

    Source:
      The authors' code of A. Defazio, K. Mishchenko, "Learning-rate-free learning by
      D-Adaptation", 2023, arXiv:2301.07733 (3.2), where it is called experimental; the
      paper has no Adan. UNVERIFIED by recorded numbers: a float64 transcription of that
      code is what this is tested against.
    """
    who = "dadapt_adan"
    links.require_decays(who, b1=b1, b2=b2, b3=b3)
    links.require_positive(who, eps=eps)
    links.require_nonnegative(who, weight_decay=weight_decay)
    _distance.require_estimate(who, learning_rate, d0, growth_rate)
    if decay_order not in DECAY_ORDERS:
        raise ValueError(
            f"{who}: decay_order must be one of {DECAY_ORDERS}, got {decay_order!r}"
        )
    link = links.scale_by_learning_rate(learning_rate)

    def init(params: optax.Params) -> DadaptAdanState:
        m, v, n, g, s = (optax.tree.zeros_like(links.widen(params)) for _ in range(5))
        d, weighted = _distance.numbers(2)
        count, rate = jnp.zeros((), jnp.int32), link.init(params)
        return DadaptAdanState(count, d, weighted, m, v, n, g, s, rate)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DadaptAdanState]:
        del extra_args
        links.require_params(who, params)
        g, x = links.widen(updates), links.widen(params)
        decay = _distance.decays(weight_decay, mask, x)
        rate: Any = link.update(jnp.ones(()), state.rate)[1]
        t = jnp.asarray(optax.safe_increment(state.count))
        d, eta = jnp.maximum(state.d, d0), rate.learning_rate
        a, first = d * eta, state.count == 0

        def averages(g: Any, m: Any, v: Any, n: Any, previous: Any, s: Any) -> Any:
            c = jnp.where(first, 0, g - previous)
            m, s = (b * y + (1 - b) * a * g for b, y in ((b1, m), (b3, s)))
            v = b2 * v + (1 - b2) * a * c
            n = b3 * n + (1 - b3) * (g + b2 * c) ** 2
            return g, m, v, n, g, s

        _, *buffers = links.each_leaf(averages, g, *state[3:8])
        n, s = buffers[2], buffers[4]

        def length(tree: Any) -> jax.Array:
            return links.inner_product(tree, _over_root(tree, n, eps))

        weighted = b3 * state.weighted + (1 - b3) * a * a * length(g)
        size = _distance.absolute_sum(s)
        h = (length(s) / (1 - b3) - weighted) / size
        d = _distance.grown(d, h, growth_rate)
        moves = _distance.moves(size, eta, d)

        weighted = _distance.sound(weighted, state.weighted)
        new = DadaptAdanState(t, d, weighted, *buffers, rate=rate)
        new = _distance.held(moves, new, state)
        ahead = jax.tree.map(lambda m, v: m + b2 * v, new.mean, new.change)
        u = _over_root(ahead, new.square, eps)
        u = _distance.decayed(u, decay, x, a, decay_order == "proximal")
        return _distance.steps(moves, u, updates), new

    return optax.GradientTransformationExtraArgs(init, update)


def _over_root(tree: Any, square: Any, eps: Any) -> Any:
    """Returns the tree over the root of the mean square."""
    return jax.tree.map(lambda y, n: y / (jnp.sqrt(n) + eps), tree, square)
