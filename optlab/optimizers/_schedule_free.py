"""Schedule-Free: averaging in the place of a learning rate that falls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links
from optlab.optimizers import _averages

DECAYED = ("y", "z")


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`; trees are float32 or wider, shaped like the parameters.

    Attributes:
      count: Updates applied so far, shape (), int32.
      weight_sum: Sum of the weights in the average, shape (), float32 (or float64).
      max_rate: Largest rate so far, alike.
      z: The sequence that takes the steps; zero before the first update.
      x: Its weighted average, which is to be evaluated; alike.
      inner_state: State of the inner transformation.
      rate: Step and rate with its warm-up, a `links.ScaleByLearningRateState`.
    """

    count: jax.Array
    weight_sum: jax.Array
    max_rate: jax.Array
    z: Any
    x: Any
    inner_state: Any
    rate: Any


def schedule_free(
    inner: optax.GradientTransformation,
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    b1: float | jax.Array = 0.9,
    warmup_steps: int | jax.Array = 0,
    r: float | jax.Array = 0.0,
    weight_lr_power: float | jax.Array = 2.0,
    weight_decay: float | jax.Array = 0.0,
    decay_at: str = "y",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains at a constant rate and averages, so that any step may be the last one.

    The parameters are y, where gradients are taken. Evaluate and save x, which
    `schedule_free_params` reads from the state. With t from 1,

        e_t = eta_t min(1, t / warmup_steps)
        u_t = inner(g(y_t)) + weight_decay y_t               z_t with decay_at "z"
        z_{t+1} = z_t - e_t u_t
        w_t = t^r (largest e so far)^weight_lr_power,   c = w_t / (w_1 + ... + w_t)
        x_{t+1} = x_t + c (z_{t+1} - x_t)
        y_{t+1} = x_{t+1} + (1 - b1) (z_{t+1} - x_{t+1})

    Batch normalisation keeps statistics of y: before an evaluation run some batches
    forward at x to replace them. State: 8 bytes a parameter beside the inner state.

    Args:
      inner: Transformation without a learning rate and sign, and best without momentum,
        whose part b1 plays: `optax.identity()`, `optax.scale_by_rms()`.
      learning_rate: Rate eta: a number, a scalar array or a schedule. Rates like those
        of a schedule's peak, or several times as large.
      b1: How near y is to the average x, in [0, 1); near 1 for very long runs.
      warmup_steps: Length of the linear warm-up.
      r: Power of the step in the weights; 0 weighs all steps alike.
      weight_lr_power: Power of the largest rate in the weights.
      weight_decay: Decoupled decay, multiplied by the rate.
      decay_at: "y" or "z", which of them is pulled towards zero.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation that needs the parameters. Updates lead from the parameters as
      they are to y, which is known in float32 or wider: bfloat16 parameters are y
      rounded, and whatever else moves them is undone.

    Raises:
      TypeError: If inner is no transformation, or an update comes without the
        parameters.
      ValueError: If a number is out of range, decay_at is unknown, or learning_rate is
        a schedule for each group.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optimizers.schedule_free(optax.identity(), 1.0, warmup_steps=4)
      >>> y = jnp.zeros(1)
      >>> state = tx.init(y)
      >>> for _ in range(4):
      ...     updates, state = tx.update(jnp.ones(1), state, y)
      ...     y = optax.apply_updates(y, updates)
      >>> x = optimizers.schedule_free_params(state, y)
      >>> print(state.z[0], f"{x[0]:.3f} {y[0]:.3f}")  # -1/4 - 2/4 - 3/4 - 1
      -2.5 -1.892 -1.952

    Source:
      A. Defazio et al., "The road less scheduled", 2024, arXiv:2405.15682, and the
      authors' code (1.4.1). Differs from it: x is kept, not solved for from y and z, so
      that b1 may be 0 and bfloat16 loses nothing. Differs from
      `optax.contrib.schedule_free` (0.2.8): one rate for a step and its weight, where
      that takes the next step's for the weight; r; decay at z; no division by b1, which
      moves bfloat16 parameters at a rate of zero.
    """
    who = "schedule_free"
    links.require_decays(who, b1=b1)
    links.require_nonnegative(who, weight_decay=weight_decay)
    links.require_one_rate(who, learning_rate)
    _check(who, warmup_steps, decay_at)
    links.require_transformation(who, inner)
    inner = optax.with_extra_args_support(inner)
    link = links.scale_by_learning_rate(learning_rate)
    decay = links.add_decayed_weights(weight_decay, mask)

    def warmed(rate: Any, t: Any) -> Any:
        factor = jnp.minimum(1.0, t / jnp.maximum(warmup_steps, 1))
        return rate._replace(learning_rate=factor * rate.learning_rate)

    def init(params: optax.Params) -> ScheduleFreeState:
        wide = links.widen(params)
        count, *sums = [jnp.zeros((), dtype) for dtype in (jnp.int32, float, float)]
        both = [optax.tree.zeros_like(wide) for _ in range(2)]
        rate = warmed(link.init(params), 1)
        return ScheduleFreeState(
            count, *sums, *both, inner_state=inner.init(wide), rate=rate
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScheduleFreeState]:
        links.require_params(who, params)
        now = links.widen(params)
        count = jnp.asarray(optax.safe_increment(state.count))
        z, x = (_from(state.count, tree, now) for tree in (state.z, state.x))
        y = jax.tree.map(lambda x, z: x + (1 - b1) * (z - x), x, z)
        u, inner_state = inner.update(
            links.widen(updates), state.inner_state, y, **extra_args
        )
        u, _ = decay.update(u, decay.init(y), y if decay_at == "y" else z)

        t = jnp.asarray(count, float)
        rate = warmed(link.update(jnp.ones(()), state.rate)[1], t)
        max_rate = jnp.maximum(state.max_rate, rate.learning_rate)
        weight = t**r * max_rate**weight_lr_power
        total = state.weight_sum + weight
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)

        dz = jax.tree.map(lambda u: -rate.learning_rate * u, u)
        dx = jax.tree.map(lambda x, z, dz: share * (z - x + dz), x, z, dz)
        dy = jax.tree.map(lambda dx, dz: dx + (1 - b1) * (dz - dx), dx, dz)
        out = jax.tree.map(_to, dy, y, now, updates)
        # One after the other: each reads what the next one replaces.
        x = links.after(jax.tree.map(_sum, x, dx), out)
        z = links.after(jax.tree.map(_sum, z, dz), x)
        sums = (total, max_rate)
        return links.after(out, z), ScheduleFreeState(
            count, *sums, z, x, inner_state, rate
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _from(count: jax.Array, tree: Any, params: Any) -> Any:
    """Returns the tree, or the parameters before the first update."""
    return jax.tree.map(
        lambda x, p: jnp.where(count == 0, p, x).astype(x.dtype), tree, params
    )


def _sum(x: jax.Array, d: jax.Array) -> jax.Array:
    """Returns x + d in the dtype of x."""
    return (x + d).astype(x.dtype)


def _to(dy: jax.Array, y: jax.Array, p: jax.Array, g: jax.Array) -> jax.Array:
    """Returns the way from the parameters p to y + dy, in the dtype of g."""
    # A step as it is, not as a difference of sums: a small one keeps its digits.
    # Parameters that are off by more than sums round are led back to y.
    off = y - p
    near = jnp.abs(off) <= 4 * jnp.finfo(y.dtype).eps * jnp.abs(y)
    return (dy + jnp.where(near, 0, off)).astype(g.dtype)


def _check(who: str, warmup_steps: Any, decay_at: str) -> None:
    """Checks what is known when the chain is built; traced numbers pass."""
    known = isinstance(warmup_steps, float | int)
    if known and (warmup_steps < 0 or warmup_steps != int(warmup_steps)):
        raise ValueError(
            f"{who}: warmup_steps must be a whole number of 0 or more, got"
            f" {warmup_steps}"
        )
    if decay_at not in DECAYED:
        raise ValueError(f"{who}: decay_at must be one of {DECAYED}, got {decay_at!r}")


def schedule_free_params(state: Any, params: Any) -> Any:
    """Returns the parameters to evaluate and to save, x of `schedule_free`.

    Args:
      state: State of `schedule_free` or of anything around it: `optax.chain`, `masked`,
        `partition`, `MultiSteps`, `inject_hyperparams`, an `nnx.Optimizer`'s.
      params: The parameters that are trained; leaves that no Schedule-Free method
        trains are returned as they are.

    Returns:
      A tree shaped like the parameters, of their dtypes; before the first update the
      parameters.

    Raises:
      ValueError: If there is no state of `schedule_free` inside.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import optimizers
      >>> tx = optax.chain(optax.clip(1.0), optimizers.schedule_free_sgd(0.5))
      >>> w = jnp.ones(1)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> x = optimizers.schedule_free_params(state, w)
      >>> print(f"{w[0]:.3f} {x[0]:.3f}")
      0.225 0.250

    Source:
      As `schedule_free`.
    """
    return _averages.evaluated("schedule_free", ScheduleFreeState, "x", state, params)


def schedule_free_sgd(
    learning_rate: float | jax.Array | optax.Schedule = 1.0,
    *,
    b1: float | jax.Array = 0.9,
    warmup_steps: int | jax.Array = 0,
    r: float | jax.Array = 0.0,
    weight_lr_power: float | jax.Array = 2.0,
    weight_decay: float | jax.Array = 0.0,
    decay_at: str = "y",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with averaging in the place of momentum and of a schedule.

    As `schedule_free` with u_t = g(y_t) + weight_decay y_t. Evaluate
    `schedule_free_params(state, params)`. State: 8 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: How near y is to the average x, in [0, 1).
      warmup_steps: Length of the linear warm-up.
      r: Power of the step in the weights.
      weight_lr_power: Power of the largest rate in the weights.
      weight_decay: Decay, multiplied by the rate.
      decay_at: "y" or "z", which of them is pulled towards zero.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation that needs the parameters, see `schedule_free`.

    Raises:
      TypeError: As `schedule_free`.
      ValueError: As `schedule_free`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.schedule_free_sgd(0.5, b1=0.5)
      >>> w = jnp.array([4.0])
      >>> state = tx.init(w)
      >>> for _ in range(3):  # the loss is half the square of w
      ...     updates, state = tx.update(w, state, w)
      ...     w = w + updates
      >>> print(w, optimizers.schedule_free_params(state, w))
      [0.75] [1.125]

    Source:
      As `schedule_free`.
    """
    return schedule_free(
        optax.identity(),
        learning_rate,
        b1=b1,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
        weight_decay=weight_decay,
        decay_at=decay_at,
        mask=mask,
    )


def schedule_free_adamw(
    learning_rate: float | jax.Array | optax.Schedule = 2.5e-3,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    warmup_steps: int | jax.Array = 0,
    r: float | jax.Array = 0.0,
    weight_lr_power: float | jax.Array = 2.0,
    weight_decay: float | jax.Array = 0.0,
    decay_at: str = "y",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with averaging in the place of momentum and of a schedule.

    As `schedule_free` with v_t = b2 v_{t-1} + (1 - b2) g_t^2 and

        u_t = g_t / (sqrt(v_t / (1 - b2^t)) + eps) + weight_decay y_t

    Evaluate `schedule_free_params(state, params)`. The submission that won the
    self-tuning track of AlgoPerf 2024 had a rate of 2.5e-3, b2 0.9955, r 0.75, a weight
    decay of 0.081 and 2 % warm-up. State: 12 bytes a parameter in float32.

    Args:
      learning_rate: Rate eta: a number, a scalar array or a schedule.
      b1: How near y is to the average x, in [0, 1).
      b2: Decay of the mean square, in [0, 1).
      eps: Added to the root, in units of the gradient.
      warmup_steps: Length of the linear warm-up, without which it may not train.
      r: Power of the step in the weights.
      weight_lr_power: Power of the largest rate in the weights.
      weight_decay: Decoupled decay, multiplied by the rate.
      decay_at: "y" or "z", which of them is pulled towards zero.
      mask: Which leaves decay: tree of booleans or a function of the parameters.

    Returns:
      A transformation that needs the parameters, see `schedule_free`.

    Raises:
      TypeError: As `schedule_free`.
      ValueError: As `schedule_free`; if b2 or eps is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import optimizers
      >>> tx = optimizers.schedule_free_adamw(0.1)
      >>> w = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(w, tx.init(w), w)
      >>> [f"{entry:.4f}" for entry in w + updates]
      ['2.9000', '-3.9000']

    Source:
      As `schedule_free`. The mean square is Optax's `scale_by_rms`.
    """
    links.require_decays("schedule_free_adamw", b2=b2)
    links.require_nonnegative("schedule_free_adamw", eps=eps)
    return schedule_free(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        learning_rate,
        b1=b1,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
        weight_decay=weight_decay,
        decay_at=decay_at,
        mask=mask,
    )
