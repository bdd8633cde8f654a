"""AutoLRS: a constant learning rate for each stage of a run, found by trials."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optlab.controllers import _forecast, _next_rate, _plain, _stages


class AutoLRSState(NamedTuple):
    """State of `autolrs`: what to do next, and what is known.

    Every action starts from the model as it was after `trained` updates, with its
    optimizer; what a trial did to them is forgotten. Batches are not: the first one of
    an action is number `trained + searched`.

    Attributes:
      action: 'try' or 'train' at `rate` for `steps` updates; 'done'; 'diverged' if
        every rate of a stage led to losses that are not finite.
      rate: Learning rate of the action.
      steps: Updates of the action.
      evaluate_every: What the action reports: with 0 the training loss of each update;
        otherwise the validation loss before the first update and after each so many.
      trained: Updates that the model has kept.
      searched: Updates thrown away.
      stage: Number of the stage, from 0; -1 in the warm-up.
      rates: Rates tried in this stage.
      forecasts: The loss at the end of the stage that each leads to.
      history: (first update, rate, forecast) of every stage trained so far; the
        forecast of the warm-up is None.
    """

    action: str
    rate: float
    steps: int
    evaluate_every: int
    trained: int
    searched: int
    stage: int
    rates: tuple[float, ...]
    forecasts: tuple[float, ...]
    history: tuple[tuple[int, float, float | None], ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AutoLRSState":
        """Makes a state of what `_asdict` gave, be it by way of JSON.

        Args:
          values: The fields by name; lists will do for tuples.

        Raises:
          TypeError: If a field is missing or unknown.
        """
        return cls(**_plain.fields(values))


class Controller(NamedTuple):
    """A controller as a pair of pure functions, and what it costs.

    Attributes:
      init: () -> state.
      step: (state, losses that the action gave) -> state.
      settings: The arguments that it was made with, by name.
      train_steps: Updates that the model keeps.
      search_steps: Updates that are thrown away, if nothing diverges in training.
    """

    init: Callable[[], AutoLRSState]
    step: Callable[[AutoLRSState, Sequence[float]], AutoLRSState]
    settings: Mapping[str, Any]
    train_steps: int
    search_steps: int


def autolrs(
    min_rate: float,
    max_rate: float,
    *,
    total_steps: int,
    stage_steps: int = 1000,
    max_stage_steps: int = 8000,
    trials: int = 10,
    warmup_steps: int = 0,
    warmup_rate: float | None = None,
    validation: bool = True,
    kappa: float = 1e6,
    seed: int = 0,
) -> Controller:
    """Searches the best constant rate for each stage of a run.

    At the start of a stage of tau updates each of ten rates is tried for tau / 10
    updates, and the loss at the end of the stage is forecast from the losses of the
    trial (`forecast_loss`). The first rate is random, the others are chosen by a
    Gaussian process (`next_rate`). Then the stage is trained at the rate with the
    lowest forecast. The next stage is twice as long, up to a longest one. So the
    search takes as many updates as the training.

    Stages of the longest length are judged by the validation loss: it is measured 16
    times a trial, and a trial in which it rises to where it began is worth its last
    one. When a stage diverges in training the next best rate has its turn.

    Nothing runs here; a loop does what the state says and reports the losses:

        state = controller.init()
        while state.action in ("try", "train"):
            state = controller.step(state, losses of the action)

    Args:
      min_rate: Lowest rate to try.
      max_rate: Highest rate to try.
      total_steps: Updates that the model keeps, warm-up included.
      stage_steps: Length tau of the first stage, a multiple of `trials`. What is left
        at the end and shorter than this is added to the last stage.
      max_stage_steps: Length of the longest stage, a multiple of `trials`.
      trials: Rates to try in a stage.
      warmup_steps: Updates before the first stage, at `warmup_rate`; a schedule that
        multiplies the rate may let it rise.
      warmup_rate: Rate of the warm-up; needed if there is one.
      validation: Whether stages of the longest length use the validation loss.
      kappa: Weight of what is not known in the choice of a rate, see `next_rate`.
      seed: Seed of the first rate of each stage.

    Returns:
      The controller. Its state is numbers, strings and tuples, so that a run can write
      it down as JSON and go on with the same decisions.

    Raises:
      ValueError: If the rates are no range, the lengths do not fit, a trial is too
        short for a forecast, or the seed or kappa is negative.
      TypeError: If a number of steps or of trials is not an int.

    Example:
      >>> import math
      >>> from optlab import controllers
      >>> controller = controllers.autolrs(1e-3, 1.0, total_steps=300, stage_steps=100)
      >>> state = controller.init()
      >>> while state.action in ("try", "train"):
      ...     away = abs(math.log(state.rate / 0.05))  # the best rate is 0.05
      ...     losses = [away + 0.9**t for t in range(state.steps)]
      ...     state = controller.step(state, losses)
      >>> [(start, 0.02 < rate < 0.12) for start, rate, _ in state.history]
      [(0, True), (100, True)]
      >>> state.trained, state.searched
      (300, 300)

    Source:
      Jin et al., AutoLRS, 2021, arXiv:2105.10762; read in the authors' code, the paper
      not verified. Differs from that code: `forecast_loss` and `next_rate` say how; a
      diverged trial enters the Gaussian process with the worst finite forecast instead
      of 1e6; a stage that diverges in training is trained again; the validation loss
      before a trial is the first of its losses.
    """
    settings = dict(locals())
    if not 0 < min_rate < max_rate < math.inf:
        raise ValueError(
            "autolrs: min_rate and max_rate must be a range above 0, got"
            f" {min_rate} and {max_rate}"
        )
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"autolrs: seed must be an int from 0 on, got {seed!r}")
    if not kappa >= 0:
        raise ValueError(f"autolrs: kappa must be at least 0, got {kappa}")
    found = _stages.stages(
        "autolrs",
        total_steps=total_steps,
        stage_steps=stage_steps,
        max_stage_steps=max_stage_steps,
        trials=trials,
        warmup_steps=warmup_steps,
        validation=validation,
    )
    if warmup_steps and not 0 < (warmup_rate or 0) < math.inf:
        raise ValueError(
            f"autolrs: a warm-up needs a warmup_rate above 0, got {warmup_rate}"
        )
    plan = _Plan(min_rate, max_rate, found, trials, warmup_rate, kappa, seed)
    search_steps = trials * sum(stage.trial_steps for stage in found)
    return Controller(plan.init, plan.step, settings, total_steps, search_steps)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What `autolrs` makes of its arguments."""

    min_rate: float
    max_rate: float
    stages: tuple[_stages.Stage, ...]
    trials: int
    warmup_rate: float | None
    kappa: float
    seed: int

    def init(self) -> AutoLRSState:
        state = AutoLRSState("done", 0.0, 0, 0, 0, 0, -1, (), (), ())
        warmup_steps = self.stages[0].start
        if warmup_steps:
            rate = float(self.warmup_rate or 0.0)
            return state._replace(action="train", rate=rate, steps=warmup_steps)
        return self.next_stage(state)

    def step(self, state: AutoLRSState, losses: Sequence[float]) -> AutoLRSState:
        values = np.asarray(losses, dtype=np.float64)
        if state.action == "try":
            return self.tried(state, values)
        if state.action == "train":
            good = np.isfinite(values).all()
            return self.trained(state) if good else self.failed(state)
        raise ValueError(f"autolrs: the run is over ({state.action}); nothing is due")

    def next_stage(self, state: AutoLRSState) -> AutoLRSState:
        """Begins the stage after the state's, or ends the run."""
        number = state.stage + 1
        if number == len(self.stages):
            return state._replace(action="done", rate=0.0, steps=0)
        state = state._replace(stage=number, rates=(), forecasts=())
        part = np.random.default_rng((self.seed, number)).random()
        return self.trial(state, self.min_rate ** (1 - part) * self.max_rate**part)

    def trial(self, state: AutoLRSState, rate: float) -> AutoLRSState:
        _, _, steps, every = self.stages[state.stage]
        return state._replace(
            action="try", rate=rate, steps=steps, evaluate_every=every
        )

    def tried(self, state: AutoLRSState, losses: np.ndarray) -> AutoLRSState:
        """Takes in a trial; then tries another rate or chooses one."""
        state = state._replace(
            rates=(*state.rates, state.rate),
            forecasts=(*state.forecasts, self.forecast(state, losses)),
            searched=state.searched + state.steps,
        )
        if len(state.rates) == self.trials:
            return self.choose(state)
        rate = _next_rate.next_rate(
            state.rates,
            _without_the_diverged(state.forecasts),
            min_rate=self.min_rate,
            max_rate=self.max_rate,
            kappa=self.kappa,
        )
        return self.trial(state, rate)

    def forecast(self, state: AutoLRSState, losses: np.ndarray) -> float:
        if not np.isfinite(losses).all():
            return _forecast.DIVERGED  # The rest of the trial may have been spared.
        stage, every = self.stages[state.stage], state.evaluate_every
        wanted = 1 + state.steps // every if every else state.steps
        if losses.shape != (wanted,):
            raise ValueError(
                f"autolrs: {wanted} losses are due from this trial, got an array of"
                f" shape {losses.shape}"
            )
        if not every:
            return _forecast.forecast_loss(losses, stage.steps)
        if losses[1:].max() >= losses[0]:
            return float(min(losses[-1], _forecast.DIVERGED))
        return _forecast.forecast_loss(losses, stage.steps / every, rounds=1)

    def choose(self, state: AutoLRSState) -> AutoLRSState:
        """Trains the stage at the best rate that is left."""
        state = state._replace(evaluate_every=0)
        best = min(state.forecasts, default=_forecast.DIVERGED)
        if best >= _forecast.DIVERGED:
            return state._replace(action="diverged", rate=0.0, steps=0)
        rate = state.rates[state.forecasts.index(best)]
        steps = self.stages[state.stage].steps
        return state._replace(action="train", rate=rate, steps=steps)

    def trained(self, state: AutoLRSState) -> AutoLRSState:
        """Takes in a stage that is trained."""
        forecast = min(state.forecasts, default=None)
        state = state._replace(
            trained=state.trained + state.steps,
            history=(*state.history, (state.trained, state.rate, forecast)),
        )
        return self.next_stage(state)

    def failed(self, state: AutoLRSState) -> AutoLRSState:
        """Takes in a stage that diverged in training, and leaves out its rate."""
        forecasts = tuple(
            _forecast.DIVERGED if rate == state.rate else forecast
            for rate, forecast in zip(state.rates, state.forecasts, strict=True)
        )
        searched = state.searched + state.steps
        return self.choose(state._replace(forecasts=forecasts, searched=searched))


def _without_the_diverged(forecasts: Sequence[float]) -> list[float]:
    """Gives diverged rates the worst loss of the others, or 0 if there are none."""
    finite = [loss for loss in forecasts if loss < _forecast.DIVERGED]
    worst = max(finite, default=0.0)
    return [loss if loss < _forecast.DIVERGED else worst for loss in forecasts]
