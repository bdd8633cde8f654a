"""The search as a pair of pure functions: decisions, lengths, accounts, failures."""

import itertools
import json
import math

import numpy as np
import pytest

from optlab import controllers

SETTINGS = {"total_steps": 100, "stage_steps": 20, "max_stage_steps": 40, "trials": 4}


def make(**changes):
    return controllers.autolrs(1e-3, 1.0, **{**SETTINGS, **changes})


def losses_of(state, best=0.05):
    """Losses that lead the lower, the nearer the rate is to the best one."""
    away = abs(math.log(state.rate / best))
    every = state.evaluate_every
    count = 1 + state.steps // every if every else state.steps
    return [away + 3 * 0.8**t for t in range(count)]


def follow(controller, report=losses_of, state=None):
    """Yields each state, up to the last one."""
    state = controller.init() if state is None else state
    yield state
    while state.action in ("try", "train"):
        state = controller.step(state, report(state))
        yield state


def test_stages_try_every_rate_and_train_the_best():
    states = list(follow(make()))
    actions = [state.action for state in states]
    assert actions == 3 * [*4 * ["try"], "train"] + ["done"]
    for before, state in itertools.pairwise(states):
        if state.action == "train":
            tried = dict(zip(state.rates, state.forecasts, strict=True))
            assert len(tried) == 4 and state.rate == min(tried, key=tried.get)
            assert before.rate == state.rates[-1]
            nearest = min(tried, key=lambda rate: abs(math.log(rate / 0.05)))
            assert state.rate == nearest
    assert all(1e-3 <= state.rate <= 1.0 for state in states[:-1])


def test_stages_double_up_to_the_longest_and_the_rest_joins_the_last():
    def stages(total_steps):
        states = follow(make(total_steps=total_steps))
        return [(s.trained, s.steps) for s in states if s.action == "train"]

    assert stages(119) == [(0, 20), (20, 40), (60, 59)]
    assert stages(179) == [(0, 20), (20, 40), (60, 40), (100, 40), (140, 39)]


def test_a_short_last_stage_is_searched_no_longer_than_it_is():
    controller = make(total_steps=80)
    trials = [s for s in follow(controller) if s.action == "try"]
    assert [s.steps for s in trials] == 4 * [5] + 4 * [10] + 4 * [5]
    assert controller.search_steps == 80


def test_the_accounts_are_kept():
    controller = make()
    states = list(follow(controller))
    for before, after in itertools.pairwise(states):
        searched = before.steps if before.action == "try" else 0
        trained = before.steps if before.action == "train" else 0
        assert after.searched == before.searched + searched
        assert after.trained == before.trained + trained
    last = states[-1]
    assert (last.trained, last.searched) == (100, 100)
    assert (controller.train_steps, controller.search_steps) == (100, 100)
    assert [start for start, _, _ in last.history] == [0, 20, 60]


def test_the_longest_stages_use_the_validation_loss():
    trials = [s for s in follow(make()) if s.action == "try"]
    assert [s.evaluate_every for s in trials] == 4 * [0] + 8 * [1]
    trials = [s for s in follow(make(validation=False)) if s.action == "try"]
    assert not any(s.evaluate_every for s in trials)
    long = make(stage_steps=320, max_stage_steps=320, total_steps=320)
    assert long.init().evaluate_every == 80 // 16
    assert all(s.evaluate_every == 0 for s in follow(long) if s.action == "train")


def test_a_validation_loss_that_rises_to_its_start_is_not_extrapolated():
    controller = make(max_stage_steps=20, stage_steps=20)
    assert controller.init().evaluate_every == 1
    state = controller.step(controller.init(), [2.0, 2.5, 1.9, 1.6, 1.4, 1.3])
    assert state.forecasts == (1.3,)
    state = controller.step(controller.init(), [2.6, 2.5, 1.9, 1.6, 1.4, 1.3])
    assert state.forecasts[0] < 1.2


def test_the_warm_up_comes_first_and_is_not_searched():
    controller = make(warmup_steps=30, warmup_rate=0.2)
    states = list(follow(controller))
    assert states[0][:4] == ("train", 0.2, 30, 0)
    assert states[1].action == "try" and states[1].trained == 30
    assert states[-1].history[0] == (0, 0.2, None)
    assert (states[-1].trained, controller.search_steps) == (100, 60)


def test_the_state_goes_through_json_anywhere():
    controller = make(warmup_steps=10, warmup_rate=0.1)
    states = list(follow(controller))
    for index, state in enumerate(states):
        text = json.dumps(state._asdict(), allow_nan=False)
        again = controllers.AutoLRSState.from_dict(json.loads(text))
        assert again == state
        assert hash(again) == hash(state)
        if index % 5 == 0:
            assert list(follow(controller, state=again)) == states[index:]


def test_a_state_with_a_field_missing_is_refused():
    values = make().init()._asdict()
    del values["rate"]
    with pytest.raises(TypeError, match="rate"):
        controllers.AutoLRSState.from_dict(values)


def test_the_seed_decides():
    first = {seed: make(seed=seed).init().rate for seed in (0, 1, 0)}
    assert len(set(first.values())) == 2
    assert list(follow(make())) == list(follow(make()))
    # Stages begin with rates of their own.
    states = [s for s in follow(make()) if s.action == "try" and not s.rates]
    assert len({s.rate for s in states}) == 3


def test_a_trial_that_diverges_is_not_chosen():
    def report(state):
        if state.action == "try" and state.rate > 0.02:
            return [3.0, math.nan]  # It stopped there.
        return losses_of(state)

    states = list(follow(make(), report))
    assert states[-1].action == "done"
    assert all(rate <= 0.02 for _, rate, _ in states[-1].history)
    assert any(1e6 in state.forecasts for state in states)
    assert states[-1].searched == 100


def test_a_search_in_which_all_diverge_says_so():
    states = list(follow(make(), lambda state: [math.inf]))
    assert [state.action for state in states] == 4 * ["try"] + ["diverged"]
    assert states[-1].forecasts == 4 * (1e6,)


def test_a_stage_that_diverges_is_trained_at_the_next_best_rate():
    def report(state):
        bad = state.action == "train" and state.rate > 0.02
        return [math.nan] if bad else losses_of(state)

    states = list(follow(make(), report))
    assert states[-1].action == "done"
    assert all(rate <= 0.02 for _, rate, _ in states[-1].history)
    retrained = [s for s in states if s.action == "train" and s.rate > 0.02]
    assert retrained
    wasted = sum(s.steps for s in retrained)
    assert (states[-1].trained, states[-1].searched) == (100, 100 + wasted)
    tried = [s.forecasts for s in states if s.action == "train" and s.trained == 0]
    assert sorted(tried[0])[1] == min(tried[1])


@pytest.mark.parametrize("warmup", [0, 10])
def test_training_that_always_diverges_ends(warmup):
    def report(state):
        return losses_of(state) if state.action == "try" else [math.nan]

    controller = make(warmup_steps=warmup, warmup_rate=0.1)
    states = list(follow(controller, report))
    assert states[-1].action == "diverged"
    assert len(states) == (2 if warmup else 9)


def test_nothing_is_due_when_the_run_is_over():
    controller = make()
    *_, last = follow(controller)
    with pytest.raises(ValueError, match=r"the run is over \(done\)"):
        controller.step(last, [1.0])


@pytest.mark.parametrize("count", [0, 4, 6])
def test_a_trial_with_losses_missing_or_to_spare_is_refused(count):
    controller = make()
    with pytest.raises(ValueError, match=r"5 losses are due.*shape \(" + str(count)):
        controller.step(controller.init(), np.ones(count))


@pytest.mark.parametrize(
    ("rates", "changes", "said"),
    [
        ((0.1, 0.1), {}, "must be a range above 0, got 0.1 and 0.1"),
        ((0.2, 0.1), {}, "must be a range"),
        ((0.0, 0.1), {}, "must be a range"),
        ((0.1, math.inf), {}, "must be a range"),
        ((math.nan, 0.1), {}, "must be a range"),
        ((0.1, 1.0), {"stage_steps": 22}, "stage_steps=22 does not divide into 4"),
        ((0.1, 1.0), {"max_stage_steps": 42}, "max_stage_steps=42 does not divide"),
        ((0.1, 1.0), {"max_stage_steps": 16}, "max_stage_steps=16 is below"),
        ((0.1, 1.0), {"stage_steps": 12}, "have 3 losses each; a forecast needs 4"),
        ((0.1, 1.0), {"total_steps": 19}, "total_steps=19 is shorter than a warm-up"),
        ((0.1, 1.0), {"total_steps": 0}, "total_steps must be at least 1"),
        ((0.1, 1.0), {"seed": -1}, "seed must be an int from 0 on, got -1"),
        ((0.1, 1.0), {"kappa": -1.0}, "kappa must be at least 0"),
        ((0.1, 1.0), {"kappa": math.nan}, "kappa must be at least 0"),
        ((0.1, 1.0), {"trials": 1}, "trials must be at least 2, got 1"),
        ((0.1, 1.0), {"stage_steps": 0}, "stage_steps must be at least 1, got 0"),
        ((0.1, 1.0), {"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ((0.1, 1.0), {"warmup_steps": 10}, "a warm-up needs a warmup_rate"),
        (
            (0.1, 1.0),
            {"warmup_steps": 90, "warmup_rate": 0.1},
            "shorter than a warm-up of 90",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(rates, changes, said):
    with pytest.raises(ValueError, match=f"^autolrs: .*{said}"):
        controllers.autolrs(*rates, **{**SETTINGS, **changes})


@pytest.mark.parametrize("name", ["total_steps", "stage_steps", "trials"])
def test_what_counts_is_an_int(name):
    with pytest.raises(TypeError, match=f"{name} counts and must be an int, got 40.0"):
        make(**{name: 40.0})
