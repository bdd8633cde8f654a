"""The stages of a run, each a little search and then a stretch of training."""

from typing import NamedTuple

from optlab.controllers import _forecast, _plain

# A trial judged by the validation loss measures it this often.
EVALUATIONS = 16


class Stage(NamedTuple):
    """One stage.

    Attributes:
      start: Updates that the model has kept when it begins.
      steps: Its length.
      trial_steps: Length of each trial.
      evaluate_every: Updates of a trial between two validation losses; 0 if the
        training loss is used.
    """

    start: int
    steps: int
    trial_steps: int
    evaluate_every: int


def stages(
    who: str,
    *,
    total_steps: int,
    stage_steps: int,
    max_stage_steps: int,
    trials: int,
    warmup_steps: int,
    validation: bool,
) -> tuple[Stage, ...]:
    """Lays the stages end to end, each twice as long as the last, up to the longest.

    What is left at the end and shorter than the first stage goes to the last one.

    Raises:
      ValueError: If the lengths do not fit; `who` says whose they are.
      TypeError: If one of them is not an int.
    """
    for name, value, least in (
        ("total_steps", total_steps, 1),
        ("stage_steps", stage_steps, 1),
        ("max_stage_steps", max_stage_steps, 1),
        ("trials", trials, 2),
        ("warmup_steps", warmup_steps, 0),
    ):
        _plain.require_count(who, name, value, least)
    for name, value in (
        ("stage_steps", stage_steps),
        ("max_stage_steps", max_stage_steps),
    ):
        if value % trials:
            raise ValueError(
                f"{who}: {name}={value} does not divide into {trials} trials of equal"
                " length; take a multiple"
            )
    if max_stage_steps < stage_steps:
        raise ValueError(
            f"{who}: max_stage_steps={max_stage_steps} is below"
            f" stage_steps={stage_steps}"
        )
    if stage_steps < _forecast.LEAST_LOSSES * trials:
        raise ValueError(
            f"{who}: {trials} trials in stage_steps={stage_steps} have"
            f" {stage_steps // trials} losses each; a forecast needs"
            f" {_forecast.LEAST_LOSSES}. Take longer stages or fewer trials"
        )
    if total_steps < warmup_steps + stage_steps:
        raise ValueError(
            f"{who}: total_steps={total_steps} is shorter than a warm-up of"
            f" {warmup_steps} and one stage of {stage_steps}; take a longer run or"
            " shorter stages"
        )
    found, start, longest = [], warmup_steps, stage_steps
    while start < total_steps:
        left = total_steps - start
        steps = left if left - longest < stage_steps else longest
        trial_steps = min(steps, longest) // trials
        every = 0
        if validation and longest == max_stage_steps:
            every = max(1, trial_steps // EVALUATIONS)
        found.append(Stage(start, steps, trial_steps, every))
        start, longest = start + steps, min(2 * longest, max_stage_steps)
    return tuple(found)
