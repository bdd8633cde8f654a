"""The loss that a law foretells for the step at hand, in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import laws


class TrackLawState(NamedTuple):
    """State of `track_law`.

    Attributes:
      count: Updates seen so far, shape (), int32.
      s1: The law's first sum, of the rates so far, shape (), float32.
      delayed: What is still to come of the falls of the rate, shape (r,), float32, one
        for each decay of the law.
      s2: The law's second sum, of what the falls have paid, shape (), float32.
      rate: Rate of the latest update, shape (), float32.
      predicted_loss: Loss foretold after these updates, shape (), float32; infinite
        before the first.
      predicted_final_loss: Loss foretold for the end of the run, shape (), float32.
    """

    count: jax.Array
    s1: jax.Array
    delayed: jax.Array
    s2: jax.Array
    rate: jax.Array
    predicted_loss: jax.Array
    predicted_final_loss: jax.Array


def track_law(
    schedule: optax.Schedule, fitted: laws.Fitted, *, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Follows a run with a law: what the loss should be now, and at the end.

    Passes updates through untouched, bit for bit. Its state has the law's two sums,
    updated by the schedule's rate of each step, and the loss that follows from them.

        S += (rate / unit)^power
        m_i = decays_i m_i + (previous rate - rate), 0 in the warm-up
        S2 += sum of shares_i (1 - decays_i) m_i
        loss = L0 + A S^-alpha - gain S2

    Args:
      schedule: The schedule that the run follows, the learning rate's own.
      fitted: The fitted law, one whose loss follows from such sums: progress,
        annealing or power.
      total_steps: Length of the run.

    Returns:
      The transformation.

    Raises:
      ValueError: If the law has no such sums, or the schedule gives no usable rate.

    Warns:
      ExtrapolationWarning: As `laws.predict` does.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from optlab import laws, optimizers, probes, schedules
      >>> step, rate = np.arange(10, 401, 10), np.full(400, 0.1)
      >>> curve = laws.Curve(step, 2 + rate.cumsum()[step - 1] ** -0.5, rate)
      >>> fitted = laws.fit(curve, laws.power_law())
      >>> schedule = schedules.constant(0.1)
      >>> track = probes.track_law(schedule, fitted, total_steps=400)
      >>> tx = optax.chain(track, optimizers.sgd(schedule))
      >>> state = tx.init(jnp.ones(2))
      >>> for _ in range(40):
      ...     _, state = tx.update(jnp.ones(2), state)
      >>> now, end = state[0].predicted_loss, state[0].predicted_final_loss
      >>> print(now.round(3), end.round(3))
      2.5 2.158

    Source:
      Written for this library; the sums: Tissue et al., 2024, arXiv:2408.11029.
    """
    if fitted.law.form is None:
        raise ValueError(
            f"probes.track_law: the {fitted.law.name} law cannot be followed step by"
            " step; fit laws.progress_law or laws.annealing_law"
        )
    rates = np.asarray(jax.vmap(schedule)(np.arange(total_steps, dtype=np.int32)))
    predicted = laws.predict(fitted, rates, total_steps)
    warmup = laws.warmup_of(rates)
    constants = {**fitted.params, "peak": fitted.peak}
    form = fitted.law.form(constants)
    decays = np.asarray(form.decays, np.float64)
    pays = np.asarray(form.shares) * (1 - decays)
    decays, pays = decays.astype(np.float32), pays.astype(np.float32)

    def init(params: optax.Params) -> TrackLawState:
        del params
        zero, end = np.zeros((), np.float32), np.float32(predicted.loss[-1])
        delayed = np.zeros(len(form.decays), np.float32)
        numbers = (zero, delayed, zero, zero, np.float32(np.inf), end)
        return TrackLawState(
            jnp.zeros((), jnp.int32), *(jnp.array(x, jnp.float32) for x in numbers)
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TrackLawState]:
        del params, extra_args
        rate = jnp.asarray(schedule(state.count), jnp.float32)
        ratio = rate / form.unit
        positive = jnp.where(ratio > 0, ratio, 1.0)
        s1 = state.s1 + jnp.where(ratio > 0, positive**form.power, 0.0)
        fall = jnp.where(state.count > warmup, state.rate - rate, 0.0)
        delayed = decays * state.delayed + fall
        s2 = state.s2 + jnp.sum(pays * delayed)
        # Before the first progress the law says nothing: the loss is without bound.
        begun = jnp.where(s1 > 0, s1, 1.0)
        loss = jnp.where(s1 > 0, form.loss(constants, begun, s2), jnp.inf)
        numbers = (s1, delayed, s2, rate, loss)
        return updates, TrackLawState(
            jnp.asarray(optax.safe_increment(state.count)),
            *(jnp.asarray(x, jnp.float32) for x in numbers),
            predicted_final_loss=state.predicted_final_loss,
        )

    return optax.GradientTransformationExtraArgs(init, update)
