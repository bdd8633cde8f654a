"""Heavy ball, Nesterov and triple momentum: one rule with three constants."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees

METHODS = ("heavy_ball", "nesterov", "triple")


class MomentumConstants(NamedTuple):
    """Constants of a momentum method for one class of functions.

    Attributes:
      alpha: Learning rate.
      beta: Decay of the momentum, in [0, 1).
      gamma: How far the gradient point lies ahead, in momenta.
      delta: How far the reported point lies ahead, in momenta.
    """

    alpha: Any
    beta: Any
    gamma: Any
    delta: Any


def momentum_constants(
    method: str, *, smoothness: float | jax.Array, convexity: float | jax.Array
) -> MomentumConstants:
    """Returns the constants of a method for L-smooth, m-strongly convex functions.

    With kappa = L / m, q = 1 / sqrt(kappa) and rho = 1 - q,

        heavy_ball   alpha = 4 / (sqrt(L) + sqrt(m))^2,   beta = ((1 - q) / (1 + q))^2,
                     gamma = delta = 0
        nesterov     alpha = 1 / L,   beta = gamma = (1 - q) / (1 + q),   delta = 0
        triple       alpha = (1 + rho) / L,   beta = rho^2 / (2 - rho),
                     gamma = beta / (1 + rho),   delta = rho^2 / (1 - rho^2)

    The error of triple momentum falls by rho a step on every such function, that of
    Nesterov's by sqrt(rho). Those of heavy ball are for quadratics, on which it is the
    fastest of the three; on other functions it may run in circles for ever.

    Args:
      method: 'heavy_ball', 'nesterov' or 'triple'.
      smoothness: L, the largest curvature.
      convexity: m, the smallest curvature, above 0 and at most L.

    Returns:
      alpha, the learning rate, and the three constants of `triple_momentum`.

    Raises:
      ValueError: If the method is unknown, or not 0 < convexity <= smoothness.

    Example:
      >>> from optlab import optimizers
      >>> for method in ("nesterov", "triple"):
      ...     found = optimizers.momentum_constants(
      ...         method, smoothness=100.0, convexity=1.0
      ...     )
      ...     print([f"{x:.4f}" for x in found])
      ['0.0100', '0.8182', '0.8182', '0.0000']
      ['0.0190', '0.7364', '0.3876', '4.2632']

    Source:
      See `triple_momentum`.
    """
    if method not in METHODS:
        raise ValueError(
            f"momentum_constants: method must be one of {METHODS}, got {method!r}"
        )
    numbers = (smoothness, convexity)
    known = all(isinstance(x, float | int) for x in numbers)
    if known and not 0 < convexity <= smoothness < float("inf"):
        raise ValueError(
            "momentum_constants: needs 0 < convexity <= smoothness, both finite, got"
            f" convexity={convexity}, smoothness={smoothness}"
        )
    q = (convexity / smoothness) ** 0.5
    if method == "heavy_ball":
        alpha = 4 / (smoothness**0.5 + convexity**0.5) ** 2
        return MomentumConstants(alpha, ((1 - q) / (1 + q)) ** 2, 0.0, 0.0)
    if method == "nesterov":
        beta = (1 - q) / (1 + q)
        return MomentumConstants(1 / smoothness, beta, beta, 0.0)
    rho = 1 - q
    beta = rho**2 / (2 - rho)
    return MomentumConstants(
        (1 + rho) / smoothness, beta, beta / (1 + rho), rho**2 / (1 - rho**2)
    )


_DEFAULT = momentum_constants("triple", smoothness=100.0, convexity=1.0)


class ScaleByTripleMomentumState(NamedTuple):
    """State of `scale_by_triple_momentum`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      offset: delta - gamma of the latest update, shape (), float32 (float64 when 64-bit
        types are on); 0 before the first.
      momentum: Decaying sum of gradients, shaped like the parameters, float32 or wider.
    """

    count: jax.Array
    offset: jax.Array
    momentum: Any


def scale_by_triple_momentum(
    *,
    beta: float | jax.Array = _DEFAULT.beta,
    gamma: float | jax.Array = _DEFAULT.gamma,
    delta: float | jax.Array = _DEFAULT.delta,
) -> optax.GradientTransformationExtraArgs:
    """Sums gradients and looks ahead along the sum.

        m_t = beta m_{t-1} + g_t
        u_t = m_t + gamma (m_t - m_{t-1})

    gamma = 0 is `optax.trace(beta)`, gamma = beta the same with `nesterov=True`.

    Args:
      beta: Decay of the sum, in [0, 1).
      gamma: How far the parameters, where gradients are taken, lie ahead, in m.
      delta: How far the reported point lies ahead, in m; updates do not depend on it.

    Returns:
      A transformation without learning rate and sign.

    Raises:
      ValueError: If beta is outside [0, 1), gamma or delta negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_triple_momentum(beta=0.5, gamma=0.25, delta=1.0)
      >>> g, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(g, state)
      >>> print(updates, state.momentum)  # 1.5 + 0.25 (1.5 - 1)
      [1.625] [1.5]

    Source:
      See `triple_momentum`.
    """
    who = "scale_by_triple_momentum"
    links.require_decays(who, beta=beta)
    links.require_nonnegative(who, gamma=gamma, delta=delta)

    def init(params: optax.Params) -> ScaleByTripleMomentumState:
        zeros = optax.tree.zeros_like(links.widen(params))
        zero = jnp.zeros((), jnp.int32)
        return ScaleByTripleMomentumState(zero, jnp.zeros((), float), zeros)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByTripleMomentumState]:
        del params, extra_args

        def rule(g: jax.Array, old: jax.Array) -> tuple[jax.Array, jax.Array]:
            m = beta * old + g
            return m + gamma * (m - old), m

        out, momentum = links.each_leaf(rule, updates, state.momentum)
        count = jnp.asarray(optax.safe_increment(state.count))
        # Written anew each time, as the rate is: a restored state keeps no old one.
        offset = jnp.array(delta - gamma, dtype=float)
        return out, ScaleByTripleMomentumState(count, offset, momentum)

    return optax.GradientTransformationExtraArgs(init, update)


def triple_momentum(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    beta: float | jax.Array = _DEFAULT.beta,
    gamma: float | jax.Array = _DEFAULT.gamma,
    delta: float | jax.Array = _DEFAULT.delta,
) -> optax.GradientTransformationExtraArgs:
    """Momentum with three constants: heavy ball, Nesterov, and the fastest of its kind.

    The parameters y are where gradients are taken, not the result: that is x, from
    `triple_momentum_eval_params`. With v = -eta m in the papers' place of m,

        m_t = beta m_{t-1} + g_t
        y_t = y_{t-1} - eta_t (m_t + gamma (m_t - m_{t-1}))
        x_t = y_t - eta_t (delta - gamma) m_t

        heavy ball   gamma = delta = 0       `sgd(eta, momentum=beta)`, x = y
        Nesterov     gamma = beta            `sgd(eta, momentum=beta, nesterov=True)`;
                                             x = y if delta = gamma, and with delta = 0
                                             x_t = y_{t-1} - eta g_t
        triple       see `momentum_constants`, which has the constants of all three

    A schedule multiplies each step by the rate of that step, and x_t is taken with the
    rate of step t; m is in units of the gradient and never sees a rate. So a jump of
    the rate does not throw y, a rate of 0 holds it still, and as the rate falls x comes
    to y. The factors by which errors fall are proven for a constant rate only.

    State: 4 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta, or alpha: a number, a scalar array or a schedule.
      beta: Decay of the sum of gradients, in [0, 1). Defaults are the constants of
        triple momentum for a condition number of 100.
      gamma: How far y lies ahead of the averaged path, in momenta.
      delta: The same for x.

    Returns:
      A transformation; the sum is float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If beta is outside [0, 1), gamma or delta negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers
      >>> grad = jax.grad(lambda w: (w[0] ** 2 + 100 * w[1] ** 2) / 2)
      >>> alpha, beta, gamma, delta = optimizers.momentum_constants(
      ...     "triple", smoothness=100.0, convexity=1.0
      ... )
      >>> tx = optimizers.triple_momentum(alpha, beta=beta, gamma=gamma, delta=delta)
      >>> y, state = jnp.ones(2), tx.init(jnp.ones(2))
      >>> for _ in range(2):  # x shrinks by 0.9 a step
      ...     updates, state = tx.update(grad(y), state)
      ...     y = y + updates
      ...     x = optimizers.triple_momentum_eval_params(state, y)
      ...     print([f"{entry:.3f}" for entry in x])
      ['0.900', '-9.000']
      ['0.810', '8.100']

    Source:
      Van Scoy, Freeman, Lynch, "The fastest known globally convergent first-order
      method for minimizing strongly convex functions", 2018; Polyak, 1964; Nesterov,
      1983. UNVERIFIED against the papers' text; the constants give the factor rho a
      step to rounding. `optax.sgd` has the first two; it cannot report another point.
    """
    core = scale_by_triple_momentum(beta=beta, gamma=gamma, delta=delta)
    rate = links.scale_by_learning_rate(learning_rate)
    return links.in_float32(optax.chain(core, rate))


def triple_momentum_eval_params(state: Any, params: Any) -> Any:
    """Returns the point x to report and to evaluate at; gradients are taken at y.

        x = y - eta (delta - gamma) m

    Args:
      state: State of `triple_momentum`, or of anything around it; an
        `nnx.Optimizer`'s `opt_state` too.
      params: y, the parameters after the update that gave the state.

    Returns:
      Tree like the parameters, of their dtypes; leaves that another optimizer moves
      come back as they are. Before the first update x = y.

    Raises:
      ValueError: If there is no state of `triple_momentum` inside, more than one, or
        its rate is one for each group; if the parameters lack a leaf of it.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.triple_momentum(0.1, beta=0.5, gamma=0.0, delta=2.0)
      >>> y = jnp.ones(1)
      >>> updates, state = tx.update(y, tx.init(y))
      >>> y = y + updates
      >>> print(y, optimizers.triple_momentum_eval_params(state, y))
      [0.9] [0.7]

    Source:
      See `triple_momentum`.
    """

    def is_chain(node: Any) -> bool:
        return isinstance(node, tuple) and any(
            isinstance(part, ScaleByTripleMomentumState) for part in node
        )

    nodes = jax.tree.leaves(state, is_leaf=is_chain)
    chains = [node for node in nodes if is_chain(node)]
    rates = [
        part
        for chain in chains
        for part in chain
        if isinstance(part, links.ScaleByLearningRateState)
    ]
    if len(chains) != 1 or len(rates) != 1 or isinstance(rates[0].learning_rate, dict):
        raise ValueError(
            "triple_momentum_eval_params: needs one state of triple_momentum with one"
            f" rate for all leaves, found {len(chains)} with {len(rates)} rates; give"
            " it what triple_momentum(...).init or its update has returned"
        )
    (core,) = (x for x in chains[0] if isinstance(x, ScaleByTripleMomentumState))
    # A variable of nnx is a tree with one leaf, the array.
    (eta,), (offset,) = map(jax.tree.leaves, (rates[0].learning_rate, core.offset))
    momenta = _by_path(core.momentum)
    strange = sorted(set(momenta) - set(_by_path(params)))
    if strange:
        raise ValueError(
            f"triple_momentum_eval_params: the state has momentum for {strange[0]!r},"
            " the parameters have no such leaf; give it those that the update moved"
        )

    def report(path: Any, y: Any) -> Any:
        m = momenta.get(trees.path_string(path))
        return y if m is None else (y - eta * offset * m).astype(y.dtype)

    return jax.tree_util.tree_map_with_path(report, params)


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {trees.path_string(path): leaf for path, leaf in leaves}
