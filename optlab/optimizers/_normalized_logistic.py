"""Gradient descent on logistic losses, with steps that do not fade with the loss."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links


def normalize_by_logit_gradient() -> optax.GradientTransformationExtraArgs:
    """Divides by how far the examples are from being fitted.

    With l = mean_i |d loss_i / d logit_i|, the extra argument `logit_grad_l1`,

        u = g / l

    For f = mean_i log(1 + exp(-z_i)) of margins z that is l = mean_i sigmoid(-z_i), and
    u is the mean of the gradients of -z_i, weighted by how wrong the examples are.
    `estimators.logistic_value_and_grad` gives l beside value and gradient.

    Returns:
      A transformation without state, learning rate and sign, which needs the extra
      argument `logit_grad_l1`, shape (): the mean over all devices, and over all parts
      of a batch, over which the gradient is one. Where it is 0, or below the smallest
      normal number of its dtype, the update is 0: float32 weights of margins above 87
      are nothing, and then the data are separated by far. What is not finite passes.

    Raises:
      TypeError: If `logit_grad_l1` is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.normalize_by_logit_gradient()
      >>> for size in (1.0, 1e-6, 0.0):
      ...     g = size * jnp.array([3.0, -4.0])
      ...     print(tx.update(g, tx.init(g), logit_grad_l1=2 * size)[0])
      [ 1.5 -2. ]
      [ 1.5 -2. ]
      [0. 0.]

    Source:
      See `normalized_logistic`.
    """

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        logit_grad_l1: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        if logit_grad_l1 is None:
            raise TypeError(
                "normalize_by_logit_gradient: needs the extra argument logit_grad_l1,"
                " the mean size of the derivatives of the losses by the logits:"
                " update(..., logit_grad_l1=l); estimators.logistic_value_and_grad"
                " gives it with the gradient"
            )
        weight = jnp.asarray(logit_grad_l1, dtype=float)
        # Subnormal numbers may count as zero in a division.
        nothing = weight < jnp.finfo(weight.dtype).tiny
        divisor = jnp.where(nothing, 1, weight)

        def rule(g: jax.Array) -> tuple[jax.Array]:
            return (jnp.where(nothing, 0, g / divisor),)

        return links.each_leaf(rule, updates)[0], state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def normalized_logistic(
    learning_rate: float | jax.Array | optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent for logistic regression that is not slow once most data fit.

    With margins z_i = y_i a_i.w and weights p_i = sigmoid(-z_i) = |d loss_i / d z_i|,

        g_t = -mean_i p_i y_i a_i
        w_{t+1} = w_t - eta_t g_t / mean_i p_i

    Plain gradient descent takes steps as small as the weights have become, which a
    large rate alone can make up for; these keep their length until every example has
    the right sign. At large rates the weights are 0 or 1, and the step is that of the
    perceptron on the mean of the misclassified examples. Stop when all are right: then
    the loss still falls, but nothing is left to gain.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.

    Returns:
      A transformation without buffers. Updates need the extra argument `logit_grad_l1`,
      mean_i p_i, see `normalize_by_logit_gradient`; they keep their dtype, and are 0
      where it is 0.

    Raises:
      TypeError: If `logit_grad_l1` is missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators, optimizers
      >>> data, w = jnp.array([[1.0, 0.0]] * 99 + [[-0.5, 0.1]]), jnp.zeros(2)
      >>> tx = optimizers.normalized_logistic(100.0)
      >>> state = tx.init(w)
      >>> while not (data @ w > 0).all():
      ...     found = estimators.logistic_value_and_grad(lambda w: data @ w, w)
      ...     updates, state = tx.update(
      ...         found.grads, state, w, logit_grad_l1=found.logit_grad_l1
      ...     )
      ...     w = w + updates
      >>> print(state[1].count)  # 398 without the division
      38

    Source:
      Tyurin, 2024, arXiv:2412.08424, on large rates in logistic regression and the
      batch perceptron. UNVERIFIED: that mean_i p_i is the paper's normaliser; it is the
      one whose limit at large rates is the normalised batch perceptron. Not
      `optax.normalize_by_update_norm`, which divides by the norm of g and so takes full
      steps in any direction, however few examples are wrong.
    """
    rate = links.scale_by_learning_rate(learning_rate)
    return links.in_float32(optax.chain(normalize_by_logit_gradient(), rate))
