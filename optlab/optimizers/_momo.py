"""MoMo and MoMo-Adam: the loss and a lower bound of it say how far to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _distance


class MomoState(NamedTuple):
    """State of `momo` and `momo_adam`; numbers and trees are float32 or wider.

    Attributes:
      count: Updates applied so far, shape (), int32.
      value: Mean of the losses, shape ().
      product: Mean of the products of gradients and parameters, shape ().
      bound: Lower bound in force after the latest update, shape (); 0 before the first.
      mu: Mean gradient, shaped like the parameters.
      nu: Mean squared gradient, alike; None for `momo`.
      rate: Step and largest rate, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    value: jax.Array
    product: jax.Array
    bound: jax.Array
    mu: Any
    nu: Any
    rate: Any


def momo(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    b1: float | jax.Array = 0.9,
    weight_decay: float | jax.Array = 0.0,
    lower_bound: float | jax.Array = 0.0,
    adapt_lower_bound: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with momentum that steps to where its model reaches the bound.

    The mean of the losses seen, as lines through the points where they were seen, is a
    model of the loss. A step along the mean gradient goes to where this model is as low
    as the loss can be, but no further than `learning_rate`, which may thus be large.
    With f_t the loss, means from the first on, products over all leaves together:

        F = b1 F + (1 - b1) f_t,   d = b1 d + (1 - b1) g_t
        p = b1 p + (1 - b1) <g_t, x_t>,   c = eta_t weight_decay
        tau = min(eta_t, max(0, (1 + c) (F - lower_bound - p) + <d, x_t>) / ||d||^2)
        x_{t+1} = (x_t - tau d) / (1 + c)

    With bias_correction means start at zero, and with rho = 1 - b1^t eta_t becomes
    eta_t / rho in tau and lower_bound rho times itself. With adapt_lower_bound the
    bound is only a first one, B; then, before and after the step,

        B = max(lower_bound, q / (2 (1 + c) rho))   if q < (1 + c) rho B
        B = max(lower_bound, (F + <d, x_t> - p - tau ||d||^2 / 2) / rho)

    where q = (1 + c) (F - p) + <d, x_t>. State: 4 bytes a parameter in float32.

    Args:
      learning_rate: Largest rate eta: a number, a scalar array or a schedule.
      b1: Decay of the means, in [0, 1).
      weight_decay: Decay of all leaves, multiplied by the rate.
      lower_bound: No loss is below it, in units of the loss. Label smoothing,
        distillation and decay in the loss keep it above 0.
      adapt_lower_bound: Whether to raise the bound as the run shows what is reached.
      bias_correction: Whether the means start at zero, as above.

    Returns:
      A transformation that needs the parameters and `value`, the very loss whose
      gradient it gets; with micro-batches the mean of theirs. A value or gradient that
      is not finite is passed over: nothing moves, and no mean changes.

    Raises:
      TypeError: If an update comes without the parameters or without `value`.
      ValueError: If a number is out of range, learning_rate is a schedule for each
        group, or `value` is more than one number.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx, w = optimizers.momo(10.0), jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     loss = jnp.sum(w**2) / 2
      ...     updates, state = tx.update(w, state, w, value=loss)
      ...     w = w + updates
      ...     print(f"{w[0]:.3f} {w[1]:.3f} {loss:.3f}")
      1.500 2.000 12.500
      1.461 1.947 3.125
      1.421 1.895 2.963
      1.382 1.843 2.805

    Source:
      F. Schaipp et al., "MoMo: momentum models for adaptive learning rates", 2023,
      arXiv:2305.07583, and the authors' code. Differs from it: at d = 0 nothing is
      divided, and only the decay acts. Differs from `optax.contrib.momo` (0.2.8): that
      does not divide the step by 1 + c, stops where ||d|| is below 1.5e-8, and keeps
      means of losses in the parameters' dtype.
    """
    links.require_decays("momo", b1=b1)

    def scaled(d: Any, nu: Any, g: Any, t: Any) -> tuple[Any, Any, Any]:
        del nu, g, t
        return d, d, None

    return _model(
        "momo",
        learning_rate,
        b1,
        weight_decay,
        lower_bound,
        adapt_lower_bound,
        bias_correction,
        scaled,
    )


def momo_adam(
    learning_rate: float | jax.Array | optax.Schedule = 1e-2,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 0.0,
    lower_bound: float | jax.Array = 0.0,
    adapt_lower_bound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam that steps to where its model of the loss reaches the bound.

    As `momo` with bias_correction, in the metric of Adam:

        v_t = b2 v_{t-1} + (1 - b2) g_t^2,   D = sqrt(v_t / (1 - b2^t)) + eps

    with d / D in place of d in the step and <d, d / D> in place of ||d||^2. Where tau
    is eta / (1 - b1^t), the largest, this is Adam with a proximal decay. State: 8 bytes
    a parameter in float32.

    Args:
      learning_rate: Largest rate eta: a number, a scalar array or a schedule; several
        times that of Adam.
      b1: Decay of the means, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient, above 0.
      weight_decay: Decay of all leaves, multiplied by the rate.
      lower_bound: No loss is below it, in units of the loss.
      adapt_lower_bound: Whether to raise the bound as the run shows what is reached.

    Returns:
      A transformation that needs the parameters and `value`, see `momo`.

    Raises:
      TypeError: As `momo`.
      ValueError: As `momo`; if b2 or eps is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx, w = optimizers.momo_adam(10.0), jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     loss = jnp.sum(w**2) / 2
      ...     updates, state = tx.update(w, state, w, value=loss)
      ...     w = w + updates
      ...     print(f"{w[0]:.3f} {w[1]:.3f} {loss:.3f}")
      1.214 2.214 12.500
      0.896 1.880 3.189
      0.718 1.686 2.169
      0.597 1.548 1.679

    Source:
      As `momo`, whose differences it shares.
    """
    links.require_decays("momo_adam", b1=b1, b2=b2)
    links.require_positive("momo_adam", eps=eps)

    def scaled(d: Any, nu: Any, g: Any, t: Any) -> tuple[Any, Any, Any]:
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, nu, g)
        share = 1 - b2**t
        metric = jax.tree.map(lambda v: jnp.sqrt(v / share) + eps, nu)
        root = jax.tree.map(lambda d, m: d / jnp.sqrt(m), d, metric)
        return jax.tree.map(jnp.divide, d, metric), root, nu

    return _model(
        "momo_adam",
        learning_rate,
        b1,
        weight_decay,
        lower_bound,
        adapt_lower_bound,
        True,
        scaled,
        squares=True,
    )


def _model(
    who: str,
    learning_rate: Any,
    b1: Any,
    weight_decay: Any,
    lower_bound: Any,
    adapt: bool,
    from_zero: bool,
    scaled: Any,
    squares: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Makes both methods: scaled(d, nu, g, t) is d / D, d / sqrt(D) and the next nu."""
    links.require_nonnegative(who, weight_decay=weight_decay)
    links.require_one_rate(who, learning_rate)
    link = links.scale_by_learning_rate(learning_rate)

    def init(params: optax.Params) -> MomoState:
        mu, nu = (optax.tree.zeros_like(links.widen(params)) for _ in range(2))
        numbers = _distance.numbers(3)
        count, rate = jnp.zeros((), jnp.int32), link.init(params)
        nu = nu if squares else None
        return MomoState(count, *numbers, mu=mu, nu=nu, rate=rate)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MomoState]:
        del extra_args
        _require(who, params, value)
        g, x = links.widen(updates), links.widen(params)
        rate: Any = link.update(jnp.ones(()), state.rate)[1]
        eta, t = rate.learning_rate, jnp.asarray(optax.safe_increment(state.count))
        b = b1 if from_zero else jnp.where(state.count == 0, 0.0, b1)
        rho = 1 - b1**t if from_zero else 1.0

        f = b * state.value + (1 - b) * jnp.asarray(value, state.value.dtype)
        product = b * state.product + (1 - b) * links.inner_product(g, x)
        mu = jax.tree.map(lambda d, g: b * d + (1 - b) * g, state.mu, g)
        u, root, nu = scaled(mu, state.nu, g, t)
        along, length = links.inner_product(mu, x), links.tree_norm(root)

        c = eta * weight_decay
        cap = (1 + c) * (f - product) + along
        bound = jnp.where(state.count == 0, lower_bound, state.bound)
        if not adapt:
            bound = jnp.asarray(lower_bound, bound.dtype)
        else:
            half = jnp.maximum(cap / (2 * (1 + c) * rho), lower_bound)
            bound = jnp.where(cap < (1 + c) * rho * bound, half, bound)
        tau = _step_size(cap - (1 + c) * rho * bound, length, eta / rho)
        if adapt:
            reached = (f + along - product - tau * length * length / 2) / rho
            bound = jnp.maximum(reached, lower_bound)

        sound = jnp.isfinite(f) & jnp.isfinite(cap) & jnp.isfinite(length)
        step = jax.tree.map(lambda u, x: (tau * u + c * x) / (1 + c), u, x)
        new = MomoState(t, f, product, bound, mu, nu, rate)
        out = _distance.steps(sound, step, updates)
        return out, _distance.held(sound, new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _step_size(gap: jax.Array, length: jax.Array, largest: Any) -> jax.Array:
    """Returns the gap over the square of the length, from 0 to the largest."""
    # A root first: squares of what is tiny or huge are no numbers, and of two
    # divisions the compiler makes one by the square.
    share = jnp.sqrt(jnp.maximum(gap, 0)) / jnp.where(length > 0, length, 1)
    return jnp.where(length > 0, jnp.minimum(largest, share * share), 0)


def _require(who: str, params: Any, value: Any) -> None:
    """Raises unless the parameters and one loss are there."""
    links.require_params(who, params)
    if value is None:
        raise TypeError(
            f"{who}: an update needs the loss: tx.update(grads, state, params,"
            " value=loss)"
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"{who}: value must be one number, got shape {jnp.shape(value)}; take the"
            " mean"
        )
