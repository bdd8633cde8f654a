"""Prodigy: Adam whose learning rate is an estimate of the distance to the solution."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optlab import links
from optlab.optimizers import _distance


class ProdigyState(NamedTuple):
    """State of `prodigy`; trees are float32 or wider, numbers float32 (or float64).

    Attributes:
      count: Updates that have moved something, shape (), int32.
      d: Estimate of the distance, after the latest update; 0 before the first.
      d_max: Largest estimate so far, without the limit on growth; alike.
      numerator: Mean progress along the gradients, shape ().
      mu: Mean of d times the gradient, shaped like the parameters.
      nu: Mean square of the same.
      s: Mean of the weighted gradients; every slice_p-th entry of each leaf.
      displacement: Sum of the updates, of the same entries.
      rate: Step and factor eta, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    d: jax.Array
    d_max: jax.Array
    numerator: jax.Array
    mu: Any
    nu: Any
    s: Any
    displacement: Any
    rate: Any


def prodigy(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    b3: float | jax.Array | None = None,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    decoupled: bool = True,
    mask: Any = None,
    bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float | jax.Array = 1e-6,
    d_coef: float | jax.Array = 1.0,
    growth_rate: float | jax.Array = _distance.INFINITE,
    slice_p: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Adam that finds its own learning rate: leave `learning_rate` at 1.

    The rate is d_t eta_t, and d_t estimates, in theory from below, how far the solution
    is from the start. As long as gradients keep pointing back to the start, d grows:
    from 1e-6 it takes ten to thirty steps. With x for the parameters, over all leaves,

        a = d_t eta_t, times sqrt(1 - b2^t) / (1 - b1^t) if bias_correction
        r_{t+1} = b3 r_t + (d_t / d0) a <g_t, x_0 - x_t>
        s_{t+1} = b3 s_t + (d_t / d0) a g_t           d_t for a if safeguard_warmup
        m_{t+1} = b1 m_t + (1 - b1) d_t g_t
        v_{t+1} = b2 v_t + (1 - b2) d_t^2 g_t^2
        h = d_coef r_{t+1} / ||s_{t+1}||_1
        d_{t+1} = min(max of all h so far and d0, growth_rate d_t)
        x_{t+1} = x_t - a (m_{t+1} / (sqrt(v_{t+1}) + d_{t+1} eps) + weight_decay x_t)

    The first h above d0 is not limited by growth_rate. The authors advise a schedule of
    factors that falls to zero once (a cosine without restarts) or none, and
    `safeguard_warmup` with a warm-up. State: 16 bytes a parameter in float32, or
    8 + 8 / slice_p.

    Args:
      learning_rate: Factor eta on d: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      b3: Decay of what d is made of, in [0, 1); None is the root of b2.
      eps: Added to the root, in units of the gradient, above 0.
      weight_decay: Decay, multiplied by the whole rate; see `decoupled`.
      decoupled: Whether weights decay beside the step, as above, or weight_decay x_t is
        added to the gradient.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      bias_correction: Whether the means are corrected for their start at zero.
      safeguard_warmup: Whether the estimate ignores small factors of a warm-up.
      d0: First estimate, above 0 and far below any that makes sense.
      d_coef: Factor on the estimate, 0.5 to 2 as a rule: the way to tune the method.
      growth_rate: Largest factor from one d to the next, at least 1.
      slice_p: Only every slice_p-th entry of a leaf is used to estimate d; 11 is
        reasonable. On a mesh these entries lie on every device.

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
      >>> tx = optimizers.prodigy()
      >>> w = jnp.array([1.0, 2.0, 3.0])
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for step in range(41):  # the loss is half the square of w
      ...     updates, state = update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      ...     if step % 10 == 0:
      ...         print(f"{step:2d} {state.d:.0e} {w[0]:.3f}")
       0 1e-06 1.000
      10 1e-02 0.972
      20 9e-01 0.519
      30 9e-01 0.150
      40 9e-01 -0.558

    Source:
      K. Mishchenko, A. Defazio, "Prodigy: an expeditiously adaptive parameter-free
      learner", 2023, arXiv:2306.06101, and the authors' code (1.1.2). Differs from
      both: x_0 - x_t is the sum of the updates, kept in float32. Measured in bfloat16
      parameters it is zero for ever, since the first steps of 1e-6 are rounded off.
      Differs from `optax.contrib.prodigy` (0.2.8): that is NaN after a first gradient
      of zero, may never start in bfloat16, always corrects the means, and lacks
      growth_rate, slice_p and the decay in the gradient.
    """
    who, root = "prodigy", b2**0.5 if b3 is None else b3
    links.require_decays(who, b1=b1, b2=b2, b3=root)
    links.require_positive(who, eps=eps, d_coef=d_coef)
    links.require_nonnegative(who, weight_decay=weight_decay)
    _distance.require_estimate(who, learning_rate, d0, growth_rate)
    if not isinstance(slice_p, int) or slice_p < 1:
        raise ValueError(
            f"{who}: slice_p must be a whole number of 1 or more, got {slice_p}"
        )
    link = links.scale_by_learning_rate(learning_rate)

    def init(params: optax.Params) -> ProdigyState:
        numbers = _distance.numbers(3)
        zeros = [optax.tree.zeros_like(links.widen(params)) for _ in range(4)]
        zeros[2:] = (_first(tree, slice_p) for tree in zeros[2:])
        count = jnp.zeros((), jnp.int32)
        return ProdigyState(count, *numbers, *zeros, rate=link.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ProdigyState]:
        del extra_args
        links.require_params(who, params)
        g, x = links.widen(updates), links.widen(params)
        decay = _distance.decays(weight_decay, mask, x)
        if not decoupled:
            g = _distance.decayed(g, decay, x)
        rate: Any = link.update(jnp.ones(()), state.rate)[1]
        t = jnp.asarray(optax.safe_increment(state.count))
        d, eta = jnp.maximum(state.d, d0), rate.learning_rate
        if bias_correction:
            eta = eta * jnp.sqrt(1 - b2**t) / (1 - b1**t)

        sampled = _every(g, slice_p)
        weight = d / d0 * d * (1.0 if safeguard_warmup else eta)
        s = jax.tree.map(lambda s, g: root * s + weight * g, state.s, sampled)
        size = _distance.absolute_sum(s)
        progress = links.inner_product(sampled, state.displacement)
        numerator = root * state.numerator - d / d0 * d * eta * progress
        h = d_coef * numerator / size
        numbers = _grown(state, d, d0, h, numerator, growth_rate)
        moves = _distance.moves(size, eta, numbers[0])

        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * (d * g), state.mu, g)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (d * g) ** 2, state.nu, g)
        new = ProdigyState(t, *numbers, mu, nu, s, state.displacement, rate)
        new = _distance.held(moves, new, state)
        floor = numbers[0] * eps
        u = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + floor), new.mu, new.nu)
        if decoupled:
            u = _distance.decayed(u, decay, x)
        u = jax.tree.map(lambda u: jnp.where(moves, d * eta * u, 0), u)
        way = jax.tree.map(_less, new.displacement, _every(u, slice_p))
        out = _distance.steps(moves, u, updates)
        return out, new._replace(displacement=way)

    return optax.GradientTransformationExtraArgs(init, update)


def _grown(
    state: ProdigyState,
    d: jax.Array,
    d0: Any,
    h: jax.Array,
    numerator: jax.Array,
    growth_rate: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns d, its largest estimate and the numerator; h may be no number."""
    sound = jnp.isfinite(h)
    numerator = jnp.where(sound, numerator, state.numerator)
    h = jnp.where(sound, h, 0)
    d_max = jnp.maximum(jnp.maximum(state.d_max, d0), h)
    d = jnp.where(d == d0, jnp.maximum(d, h), d)
    return jnp.minimum(d_max, d * growth_rate), d_max, numerator


def _every(tree: Any, p: int) -> Any:
    """Returns the tree, or a list of every p-th entry of each of its leaves."""
    if p == 1:
        return tree

    def part(x: jax.Array) -> jax.Array:
        sharding = jax.typeof(x).sharding
        if any(sharding.spec):
            # An Explicit mesh flattens only what is whole.
            x = jax.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))
        return links.settled(x.ravel()[::p])

    return [part(x) for x in jax.tree.leaves(tree)]


# One program: what devices send each other leaf by leaf may block them.
_first = jax.jit(_every, static_argnums=1)


def _less(x: jax.Array, u: jax.Array) -> jax.Array:
    """Returns x - u in the dtype of x."""
    return (x - u).astype(x.dtype)
