"""MKOR-H: a preconditioner that is put out once it stops paying."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class ScaleByMkorHState(NamedTuple):
    """State of `scale_by_mkor_h`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      fast: Moving average of the loss, shape (), float32.
      slow: Slower moving average of the loss, shape (), float32.
      flat_steps: Steps in a row without enough progress, shape (), int32.
      put_out: Whether the preconditioner is out for good, shape (), bool.
      inner: State of the preconditioner.
    """

    count: jax.Array
    fast: jax.Array
    slow: jax.Array
    flat_steps: jax.Array
    put_out: jax.Array
    inner: Any


def scale_by_mkor_h(
    preconditioner: optax.GradientTransformation,
    *,
    fast: float | jax.Array = 0.9,
    slow: float | jax.Array = 0.99,
    threshold: float | jax.Array = 1e-3,
    patience: int = 50,
    min_steps: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Preconditions until the loss stops falling, and never again after that.

        f_t = fast f_{t-1} + (1 - fast) loss_t,   s_t likewise with slow
        flat when (s_t - f_t) / |s_t| < threshold

    After `patience` flat steps in a row, `min_steps` at the earliest, updates pass
    through as they come, with the very bits; the preconditioner is not run any more.

    Updates need `value`, the loss, beside what the preconditioner needs.

    Args:
      preconditioner: Such as `scale_by_mkor()`.
      fast: Decay of the faster average, in [0, 1).
      slow: Decay of the slower average, in [0, 1).
      threshold: Least fall of the loss, relative to itself, that is progress.
      patience: Flat steps in a row that put the preconditioner out.
      min_steps: Steps before it may be put out.

    Returns:
      A transformation without learning rate and sign. A loss that is not finite counts
      as progress and does not enter the averages.

    Raises:
      ValueError: If patience is no positive integer.
      TypeError: If `value` is missing.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.scale_by_mkor_h(optax.scale(2.0), patience=2, min_steps=0)
      >>> g, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for _ in range(3):
      ...     u, state = tx.update(g, state, value=0.5)  # a loss that does not fall
      ...     print(u)
      [2.]
      [1.]
      [1.]

    Source:
      See `mkor_h`.
    """
    if int(patience) != patience or patience < 1:
        raise ValueError(f"scale_by_mkor_h: patience must be 1 or more, got {patience}")
    preconditioner = optax.with_extra_args_support(preconditioner)

    def init(params: optax.Params) -> ScaleByMkorHState:
        averages = (jnp.zeros(()), jnp.zeros(()))
        counts = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        return ScaleByMkorHState(
            counts[0],
            *averages,
            counts[1],
            jnp.zeros((), bool),
            preconditioner.init(params),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMkorHState]:
        if value is None:
            raise TypeError(
                "scale_by_mkor_h: an update needs the loss: tx.update(grads, state,"
                " params, value=loss, ...)"
            )
        count = jnp.asarray(optax.safe_increment(state.count))
        value = jnp.asarray(value, state.fast.dtype)
        finite = jnp.isfinite(value)

        def average(old: jax.Array, decay: float | jax.Array) -> jax.Array:
            moved = jnp.where(
                state.count == 0, value, decay * old + (1 - decay) * value
            )
            return jnp.where(finite, moved, old).astype(old.dtype)

        quick, late = average(state.fast, fast), average(state.slow, slow)
        flat = finite & (late - quick < threshold * jnp.abs(late))
        flat_steps = jnp.where(flat, optax.safe_increment(state.flat_steps), 0)
        out = state.put_out | ((flat_steps >= patience) & (state.count >= min_steps))

        def precondition(inner: Any) -> tuple[Any, Any]:
            return preconditioner.update(
                updates, inner, params, value=value, **extra_args
            )

        updates, inner = jax.lax.cond(
            out, lambda inner: (updates, inner), precondition, state.inner
        )
        return updates, ScaleByMkorHState(
            count, quick, late, jnp.asarray(flat_steps), out, inner
        )

    return optax.GradientTransformationExtraArgs(init, update)


def mkor_h(
    learning_rate: float | jax.Array | optax.Schedule,
    preconditioner: optax.GradientTransformation,
    *,
    momentum: float | jax.Array | None = 0.9,
    fast: float | jax.Array = 0.9,
    slow: float | jax.Array = 0.99,
    threshold: float | jax.Array = 1e-3,
    patience: int = 50,
    min_steps: int = 100,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """MKOR-H: MKOR until the loss stops falling, then its inner SGD alone.

    The direction u_t is that of `scale_by_mkor_h`, then

        v_t = momentum v_{t-1} + u_t
        w_t = w_{t-1} - eta_t (v_t + weight_decay w_{t-1})

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      preconditioner: What is put out, such as `scale_by_mkor()`.
      momentum: Decay of the sum of directions, in [0, 1); None keeps none.
      fast: Decay of the faster average of the loss.
      slow: Decay of the slower average of the loss.
      threshold: Least relative fall of the loss that is progress.
      patience: Flat steps in a row that put the preconditioner out.
      min_steps: Steps before it may be put out.
      weight_decay: Decoupled decay, multiplied by the learning rate.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation; updates take `value` and what the preconditioner needs.

    Raises:
      ValueError: As `scale_by_mkor_h`.
      TypeError: As `scale_by_mkor_h`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.mkor_h(0.1, optax.scale(2.0), patience=1, min_steps=1)
      >>> g, state = jnp.ones(1), tx.init(jnp.ones(1))
      >>> for _ in range(2):
      ...     u, state = tx.update(g, state, g, value=0.5)
      ...     print(f"{u[0]:.2f}")
      -0.20
      -0.28

    Source:
      Mozaffari et al., "MKOR", 2023, arXiv:2306.01685, section on the hybrid. The
      authors' code has no such switch. UNVERIFIED: the rule is a reconstruction from
      the paper's idea, that second-order updates end when the rate at which the loss
      falls no longer pays for them; averages, threshold and patience are ours.
    """
    core = scale_by_mkor_h(
        preconditioner,
        fast=fast,
        slow=slow,
        threshold=threshold,
        patience=patience,
        min_steps=min_steps,
    )
    if momentum is not None:
        core = optax.chain(core, optax.trace(momentum))
    return links.descend(core, learning_rate, weight_decay=weight_decay, mask=mask)
