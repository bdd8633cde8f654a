"""FedHyper: learning rates of federated rounds that follow a hypergradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByFedhyperState(NamedTuple):
    """State of `scale_by_fedhyper`.

    Attributes:
      count: Rounds so far, shape (), int32.
      correction: h, what is added to a rate of 1, shape (), float32 or wider.
      direction: Sum of the rounds' updates so far, or the latest one without momentum,
        shaped like the parameters, float32 or wider.
    """

    count: jax.Array
    correction: jax.Array
    direction: Any


def scale_by_fedhyper(
    momentum: float | jax.Array | None = None,
    *,
    normalize: bool = False,
    bounds: tuple[float, float] = (-0.8, 4.0),
) -> optax.GradientTransformationExtraArgs:
    """Lengthens the server's step while rounds agree, and shortens it when they turn.

    For the server of federated training: the incoming update of a round is the server's
    model minus the mean of the clients' models, in the place of a gradient (either sign
    gives the same h).

        h_t = cut(h_{t-1} + <m_{t-1}, g_t>),   h_0 = 0
        m_t = g_t                 u_t = (1 + h_t) g_t            without momentum
        m_t = g_t + momentum m_{t-1}    u_t = g_t + h_t m_t      with

    Args:
      momentum: Decay of the sum of updates, in [0, 1); None keeps only the latest. The
        paper's momentum form has 0.9 and bounds (-0.2, 4).
      normalize: Whether <m, g> is divided by both norms, so that it does not grow with
        the size of the model.
      bounds: Smallest and largest h, above -1 for steps that never turn back.

    Returns:
      A transformation without a learning rate and sign. A product that is not finite
      leaves h as it was, as does a zero vector if `normalize`.

    Raises:
      ValueError: If the bounds are not in order, or 0 is outside of them.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_fedhyper()
      >>> state = tx.init(jnp.zeros(1))
      >>> for delta in (1.0, 0.3, -2.0):
      ...     updates, state = tx.update(jnp.array([delta]), state)
      ...     print(f"{updates[0]:.2f} {state.correction:.2f}")
      1.00 0.00
      0.39 0.30
      -1.40 -0.30

    Source:
      Wang et al., 2023, arXiv:2310.03156 (FedHyper-G; with momentum, the "GM" of the
      authors' code). The same rule as `wrappers.hypergradient` around
      `optax.identity()` with both rates 1 and bounds (0.2, 5). `normalize` is written
      for this library: the authors' raw products scale with the size of the model.
    """
    low, high = bounds
    if not low <= 0 <= high:
        raise ValueError(
            f"scale_by_fedhyper: bounds must hold 0, where h starts, got {bounds}"
        )

    def init(params: optax.Params) -> ScaleByFedhyperState:
        zeros = optax.tree.zeros_like(links.widen(params))
        return ScaleByFedhyperState(
            jnp.zeros((), jnp.int32), jnp.zeros((), float), zeros
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByFedhyperState]:
        del params, extra_args
        g, m, h = links.widen(updates), state.direction, state.correction
        slope = links.inner_product(m, g, normalize=normalize)
        h = jnp.where(jnp.isfinite(slope), jnp.clip(h + slope, low, high), h)
        h = h.astype(state.correction.dtype)
        g = links.after(g, h)
        if momentum is not None:
            m = jax.tree.map(lambda m, g: (g + momentum * m).astype(m.dtype), m, g)
            wide = jax.tree.map(lambda m, g: g + h * m, m, g)
        else:
            m, wide = g, jax.tree.map(lambda g: (1 + h) * g, g)
        out = jax.tree.map(lambda w, u: w.astype(u.dtype), wide, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, ScaleByFedhyperState(count, h, m)

    return optax.GradientTransformationExtraArgs(init, update)


def fedhyper(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float | jax.Array | None = None,
    normalize: bool = False,
    bounds: tuple[float, float] = (-0.8, 4.0),
) -> optax.GradientTransformationExtraArgs:
    """The server's optimizer of FedHyper: its rate is corrected from round to round.

    The update is that of `scale_by_fedhyper`, then

        w_t = w_{t-1} - eta_t u_t

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule; the paper's is 1,
        for updates that are differences of models.
      momentum: Decay of the sum of updates, in [0, 1); None keeps only the latest.
      normalize: Whether products are divided by both norms.
      bounds: Smallest and largest correction h.

    Returns:
      A transformation; accumulators are float32 or wider, updates keep their dtype.

    Raises:
      ValueError: If the bounds are not in order, or 0 is outside of them.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.fedhyper(1.0, normalize=True)
      >>> difference = jnp.array([0.6, -0.8])  # the server's model minus the mean
      >>> state = tx.init(difference)
      >>> for _ in range(3):
      ...     updates, state = tx.update(difference, state)
      >>> [f"{entry:.2f}" for entry in updates]
      ['-1.80', '2.40']

    Source:
      As `scale_by_fedhyper`.
    """
    return optax.chain(
        scale_by_fedhyper(momentum, normalize=normalize, bounds=bounds),
        links.scale_by_learning_rate(learning_rate),
    )


def fedhyper_server_rate(
    learning_rate: float | jax.Array,
    correction: float | jax.Array,
    *,
    bounds: tuple[float, float] = (1e-3, 0.1),
) -> jax.Array:
    """The rate that FedHyper's server sets for its clients' next round.

        eta = cut(eta_0 (1 + h_t))

    Args:
      learning_rate: Rate eta_0 of a client's steps before any correction.
      correction: h_t, the `correction` in the state of a `scale_by_fedhyper` without
        bounds: bounds=(-math.inf, math.inf).
      bounds: Smallest and largest rate.

    Returns:
      The rate, shape (), float32 or wider.

    Example:
      >>> from optlab import optimizers
      >>> print(optimizers.fedhyper_server_rate(0.01, 0.5))
      0.015

    Source:
      Wang et al., 2023, arXiv:2310.03156 (FedHyper-SL). Differs from the authors' code,
      which rebuilds the clients' rates from the default at the start of every round, so
      that there this rule has no effect: use what is returned, round after round.
    """
    return jnp.clip(jnp.asarray(learning_rate, float) * (1 + correction), *bounds)


def fedhyper_client_factor(
    factor: float | jax.Array,
    change: Any,
    last_change: Any,
    server_change: Any,
    *,
    clients: int,
    normalize: bool = False,
    bounds: tuple[float, float] = (0.1, 10.0),
) -> jax.Array:
    """The factor on a client's rate after one of its steps.

    It grows, by a tenth at most, while steps agree with each other and with the round
    before, and shrinks when they turn. A client starts its round with factor 1.

        gamma = min(1.1, 1 + 0.1 <d_k, D> / clients + <d_k, d_{k-1}>)
        factor_k = cut(factor_{k-1} gamma)

    Args:
      factor: factor_{k-1}, a number or an array of shape ().
      change: d_k, parameters after the step minus those before; a tree.
      last_change: d_{k-1}; D for the first step of a round.
      server_change: D, how the server's model changed in the round before.
      clients: Clients in a round.
      normalize: Whether both products are divided by the norms of their vectors.
      bounds: Smallest and largest factor.

    Returns:
      The new factor, shape (), float32 or wider; the old one if a product is not
      finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> d, turned = jnp.array([0.1, 0.2]), jnp.array([-0.2, -0.1])
      >>> for last in (d, turned):
      ...     factor = optimizers.fedhyper_client_factor(1.0, d, last, d, clients=10)
      ...     print(f"{factor:.4f}")
      1.0505
      0.9605

    Source:
      Wang et al., 2023, arXiv:2310.03156 (FedHyper-CL). Differs from the authors' code:
      that skips the first batch of every local epoch; `normalize` is ours.
    """
    change, last_change, server_change = map(
        links.widen, (change, last_change, server_change)
    )
    product = functools.partial(links.inner_product, normalize=normalize)
    gamma = (
        1
        + 0.1 * product(change, server_change) / clients
        + product(change, last_change)
    )
    old = jnp.asarray(factor, float)
    new = jnp.clip(old * jnp.minimum(1.1, gamma), *bounds)
    return jnp.where(jnp.isfinite(gamma), new, old)
