"""Exponentiated gradient: weights are multiplied, so no weight changes its sign."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links


def exponentiated_gradient(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float | jax.Array | None = None,
    dampening: float | jax.Array = 0.0,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    max_exponent: float | jax.Array = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """EG: gradient descent by factors, for weights that must keep their signs.

    A step is in proportion to the weight: large weights learn fast, small ones hardly
    move, and many stay near zero. Synapses that excite and synapses that inhibit
    (Dale's law) stay what they are.

        d_t = g_t + weight_decay sign(w_{t-1})
        m_t = momentum m_{t-1} + (1 - dampening) d_t,   m_1 = d_1
        w_t = w_{t-1} exp(-eta_t sign(w_{t-1}) m_t)

    The exponent is held in [-max_exponent, max_exponent]; the new weight is no smaller
    than the unit of rounding times the old one (1/128 in bfloat16) and no smaller than
    the smallest normal number, so that rounding does not take the sign either, and no
    larger than half the largest number.

    **A weight of zero never moves**: it has no sign. Start from signs drawn at random
    times sizes from a log-normal law, `sign * jnp.exp(mean + std * normal)`, or from
    any other law without zeros. What has to start at zero or to change its sign, such
    as a bias, is written as the difference of two leaves of positive numbers.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      momentum: Decay of the sum, in [0, 1); None keeps no sum.
      dampening: Part of every gradient but the first that the sum leaves out.
      weight_decay: Added to the gradient with the sign of the weight: sizes decay by
        the factor exp(-eta weight_decay), before momentum.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      max_exponent: Largest size of the exponent, above 0; 10 is a factor of 22026.

    Returns:
      A transformation that needs the parameters and comes last: a link behind it could
      turn signs. The sum is float32 or wider, updates keep their dtype, and the rate in
      force is in the state, see `inspection.hyperparams`.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.exponentiated_gradient(1.0)
      >>> w, g = jnp.array([0.5, -0.5, 2.0, 0.0]), jnp.array([0.1, 0.1, -0.2, 9.0])
      >>> updates, _ = tx.update(g, tx.init(w), w)
      >>> [f"{entry:.4f}" for entry in w + updates]
      ['0.4524', '-0.5526', '2.4428', '0.0000']

    Source:
      J. Kivinen, M. Warmuth, "Exponentiated gradient versus gradient descent for linear
      predictors", 1997; J. Cornford et al., "Brain-like learning with exponentiated
      gradients", 2024, doi:10.1101/2024.10.25.620272, and the authors' code, on numbers
      of which this was tested. Differs from the authors' code: theirs has no bounds.
    """
    who = "exponentiated_gradient"
    links.require_nonnegative(who, weight_decay=weight_decay)
    # The chain is given signs for parameters, and these are what it decays.
    exponents = optax.chain(
        links.add_decayed_weights(weight_decay, mask),
        links.add_dampened(who, momentum, dampening),
        links.scale_by_learning_rate(learning_rate),
    )
    return _exponentiate(who, exponents, max_exponent)


def exponentiated_adamw(
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: float | jax.Array = 1e-2,
    mask: Any = None,
    max_exponent: float | jax.Array = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """EG with AdamW's direction: every weight changes by about the same factor a step.

        u_t = Adam's direction of g_t, see `adamw`
        w_t = w_{t-1} (1 - eta_t weight_decay) exp(-eta_t sign(w_{t-1}) u_t)

    Bounds, zeros and how to begin are as in `exponentiated_gradient`.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: Decay of the mean, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      weight_decay: Decoupled decay; eta weight_decay counts as just below 1 if it is
        more.
      mask: Which leaves decay: tree of booleans or a function of the parameters.
      max_exponent: Largest size of the exponent, decay included, above 0.

    Returns:
      A transformation that needs the parameters and comes last; accumulators are
      float32 or wider, updates keep their dtype.

    Raises:
      TypeError: If there are no parameters.
      ValueError: If a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.exponentiated_adamw(0.1, weight_decay=0.0)
      >>> w, g = jnp.array([2.0, -2.0]), jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(g, tx.init(w), w)
      >>> [f"{entry:.4f}" for entry in updates]  # 2 (exp(-0.1) - 1) and so on
      ['-0.1903', '-0.2103']

    Source:
      J. Cornford et al., as in `exponentiated_gradient`, and the authors' code, on
      numbers of which this was tested. Differs from the authors' code: theirs has no
      bounds, and its decay turns signs where eta weight_decay is above 1.
    """
    who = "exponentiated_adamw"
    links.require_decays(who, b1=b1, b2=b2)
    links.require_nonnegative(who, eps=eps, weight_decay=weight_decay)
    rate = links.scale_by_learning_rate(learning_rate)
    decay = links.add_decayed_weights(weight_decay, mask)
    adam = optax.scale_by_adam(b1, b2, eps)
    # It is given signs for parameters, as in `exponentiated_gradient`.
    last = links.decay_after_rate(rate, decay, _log_shrink)
    return _exponentiate(who, optax.chain(adam, last), max_exponent)


def _exponentiate(
    who: str, exponents: optax.GradientTransformation, most: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Multiplies weights by exp(sign(w) s), with s made from gradients and signs."""
    if isinstance(most, float | int) and not most > 0:
        raise ValueError(f"{who}: max_exponent must be above 0, got {most}")
    exponents = optax.with_extra_args_support(exponents)

    def init(params: optax.Params) -> Any:
        return exponents.init(links.widen(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        links.require_params(who, params)
        signs = jax.tree.map(jnp.sign, links.widen(params))
        wide = links.widen(updates)
        steps, state = exponents.update(wide, state, signs, **extra_args)

        def move(w: jax.Array, sign: Any, s: jax.Array, g: jax.Array) -> jax.Array:
            growth = jnp.expm1(jnp.clip(sign * s, -most, most))
            return (sign * _bounded(growth, w, g)).astype(g.dtype)

        return jax.tree.map(move, params, signs, steps, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _bounded(growth: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    """Returns what is added to |w|, within what the dtypes of w and g can hold."""
    size = jnp.abs(w).astype(growth.dtype)
    kinds = [jnp.finfo(x.dtype) for x in (w, g)]
    eps, tiny = (max(float(getattr(k, n)) for k in kinds) for n in ("eps", "tiny"))
    # Less than one spacing below |w| an update of a narrow dtype would round to -w.
    least = jnp.maximum(eps * size, tiny)
    most = min(float(k.max) for k in kinds) / 2
    return jnp.clip(
        size * growth, jnp.minimum(least - size, 0), jnp.maximum(most - size, 0)
    )


def _log_shrink(c: jax.Array, sign: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the exponent of 1 + c, which is what decay leaves of a weight."""
    del step
    # Finite, or an infinite step the other way would make it undefined.
    return sign * jnp.log1p(jnp.maximum(c, jnp.finfo(c.dtype).eps - 1))
