"""A searched learning rate in the loop: what it runs, keeps, forgets and survives."""

import dataclasses
import itertools
import math
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optlab import controllers, lab, optimizers
from optlab.lab import autolrs, chains, cli, search, train, workloads
from tests.lab import toy

ROOT = pathlib.Path(__file__).parents[2]
RUN = {"steps": 60, "eval_every": 10, "checkpoint_every": 13, "measure": False}
SETTINGS = {"total_steps": 60, "stage_steps": 20, "max_stage_steps": 40, "trials": 4}
# One object, so that runs share the compiled step.
ADAMW = search.steerable(optimizers.adamw, 0.1)
SGD = search.steerable(optimizers.sgd, 0.1)


def not_a_number_at(moment):
    """The workload with one bad batch."""

    def act(index, batch):
        return {**batch, "y": batch["y"] * np.nan} if index == moment else None

    return toy.with_batch(act)


def run(workload=toy.BATCH_NORM, out=None, tx=ADAMW, rates=(1e-3, 1.0), **more):
    """Trains; returns the result and all arrays of the model."""
    controller = controllers.autolrs(*rates, **{**SETTINGS, **more})
    model = workload.make_model(0)
    result = train.train(
        workload,
        tx,
        out=out,
        model=model,
        controller=controller,
        progress=False,
        **RUN,
    )
    return result, [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def same(a, b):
    """Tells whether two runs have the same losses and arrays, in every bit."""
    numbers = [(one.train_losses, one.evaluations) for one, _ in (a, b)]
    return numbers[0] == numbers[1] and toy.same_bits(a[1], b[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture(scope="module")
def undisturbed(folder):
    return run(out=folder)


def test_the_log_shows_the_search_and_what_it_costs(folder, undisturbed):
    rows = toy.log_of(folder, "search")
    assert len(rows) == 8  # four trials in each of two stages
    assert [row["searched"] for row in rows] == [5, 10, 15, 20, 30, 40, 50, 60]
    assert {row["search_steps"] for row in rows} == {60}
    chosen = [row["state"] for row in rows if row["state"]["action"] == "train"]
    assert [(state["trained"], state["steps"]) for state in chosen] == [
        (0, 20),
        (20, 40),
    ]
    trained = toy.log_of(folder, "train")
    assert [row["step"] for row in trained] == list(range(60))
    for state in chosen:
        stage = trained[state["trained"] : state["trained"] + state["steps"]]
        rates = {row["learning_rate"] for row in stage}
        assert rates == {float(np.float32(state["rate"]))}
        best = min(zip(state["forecasts"], state["rates"], strict=True))
        assert best[1] == state["rate"]
    steps = [row["step"] for row in toy.log_of(folder, "eval")]
    assert steps == [10, 20, 30, 40, 50, 60]
    assert undisturbed[0].final_loss < undisturbed[0].evaluations[0][1]


def test_a_folder_changes_nothing(undisturbed):
    assert same(run(), undisturbed)


def test_every_batch_is_used_once_and_in_order():
    used = []
    run(toy.with_batch(lambda index, batch: used.append(index)))
    assert used == list(range(120))


def test_trials_leave_no_trace_in_model_optimizer_and_statistics(folder, undisturbed):
    """The run equals one at the rates that were found, on the batches it trained on."""
    rates = [row["learning_rate"] for row in toy.log_of(folder, "train")]
    spent = [20 if step < 20 else 60 for step in range(60)]
    plain = dataclasses.replace(
        toy.BATCH_NORM,
        batch=lambda seed, step: toy.BATCH_NORM.batch(seed, step + spent[step]),
    )
    model = toy.BATCH_NORM.make_model(0)
    table = jnp.asarray(rates)
    tx = optimizers.adamw(lambda count: table[count])
    result = train.train(plain, tx, model=model, **RUN)
    np.testing.assert_allclose(
        result.train_losses, undisturbed[0].train_losses, rtol=1e-4
    )
    for own, other in zip(
        jax.tree.leaves(nnx.state(model)), undisturbed[1], strict=True
    ):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-5)


def test_one_compiled_step_serves_every_rate():
    traced = []

    def loss(model, batch):
        traced.append(1)
        return toy.loss(model, batch)

    result, _ = run(dataclasses.replace(toy.BATCH_NORM, loss=loss))
    # Once for the step, once for the evaluation, at eight rates.
    assert len(traced) == 2
    assert result.compile_seconds > 0


def test_a_rate_follows_in_every_group():
    searched = autolrs.plan(
        "muon:learning_rate=0.1,rest.learning_rate=0.02+autolrs:trials=4,stage_steps=20"
        ",min_rate=0.01,max_rate=1@21",
        0,
        "",
    )
    tx, controller = searched.build()
    assert controller.settings["max_stage_steps"] == 20
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    state = tx.init(params)
    for rate in (0.1, 0.5):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        for _ in range(3):  # The warm-up has one step.
            updates, state = tx.update(params, state, params)
        rest = optimizers.adamw(0.2 * rate)
        expected, _ = rest.update(params, rest.init(params), params)
        np.testing.assert_allclose(updates["bias"], expected["bias"], rtol=1e-3)
        factor = 0.1 * updates["kernel"] / rate
        if rate == 0.1:
            first = factor
    np.testing.assert_allclose(factor, first, rtol=0.05)


# In trials (0 to 19 and 40 to 79), at their ends, in training, at its ends.
@pytest.mark.parametrize("moment", [0, 3, 19, 28, 40, 57, 80, 95, 119])
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path, moment, undisturbed):
    with pytest.raises(toy.Interrupted):
        run(toy.interrupt_at(moment), tmp_path)
    known = (
        len(toy.log_of(tmp_path, "search"))
        if (tmp_path / "metrics.jsonl").exists()
        else 0
    )
    begun = []
    result = run(toy.with_batch(lambda index, batch: begun.append(index)), tmp_path)
    assert same(result, undisturbed)
    if moment < 20:
        assert begun[0] == 5 * known  # No trial is run again.
    elif 40 <= moment < 80:
        assert begun[0] == 40 + 10 * (known - 4)
    assert [row["searched"] for row in toy.log_of(tmp_path, "search")][-1] == 60


def test_a_finished_run_is_read_and_not_run_again(folder, undisturbed):
    again = run(toy.interrupt_at(0), folder)
    assert same(again, undisturbed)
    assert again[0].resumed_from == 60


def test_another_search_in_the_same_folder_is_refused(folder, undisturbed):
    with pytest.raises(lab.LabError, match="holds another run"):
        run(out=folder, kappa=2.0)


def test_a_lost_search_is_said(tmp_path):
    with pytest.raises(toy.Interrupted):
        run(toy.interrupt_at(90), tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(lab.LabError, match="lost the search that led to step"):
        run(out=tmp_path)


def test_rates_that_diverge_are_not_trained(tmp_path):
    result, _ = run(out=tmp_path, tx=SGD, rates=(1e-2, 1e30))
    assert math.isfinite(result.final_loss)
    states = [row["state"] for row in toy.log_of(tmp_path, "search")]
    assert any(1e6 in state["forecasts"] for state in states)
    assert max(row["learning_rate"] for row in toy.log_of(tmp_path, "train")) < 1e10


def test_if_all_rates_diverge_the_run_says_so(tmp_path):
    for _ in range(2):  # The same command again ends the same way.
        with pytest.raises(
            lab.Diverged, match=r"all 4 rates from 1e\+20 to 1e\+30 diverged in the"
        ):
            run(out=tmp_path, tx=SGD, rates=(1e20, 1e30))


def test_a_warm_up_that_diverges_is_said():
    with pytest.raises(lab.Diverged, match=r"warm-up to rate 0\.1 diverged"):
        run(not_a_number_at(3), warmup_steps=20, warmup_rate=0.1)


# Batches 80 to 119 train the second stage; when that has failed 120 to 159 do.
BAD = not_a_number_at(101)


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("retrained")
    return out, run(BAD, out)


def test_a_stage_that_diverges_is_trained_at_the_next_best_rate(retrained):
    out, whole = retrained
    states = [row["state"] for row in toy.log_of(out, "search")]
    assert len(states) == 9
    before, after = states[-2:]
    assert sorted(before["forecasts"])[1] == min(after["forecasts"])
    assert before["rate"] != after["rate"]
    assert (after["searched"], after["trained"]) == (100, 20)
    assert [row["step"] for row in toy.log_of(out, "train")] == [*range(60)]
    assert np.isfinite(whole[0].train_losses).all()
    assert same(run(BAD), whole)


@pytest.mark.parametrize("moment", [95, 135])
def test_such_a_run_may_be_interrupted(tmp_path, moment, retrained):
    with pytest.raises(toy.Interrupted):
        run(toy.interrupt_at(moment, BAD), tmp_path)
    assert same(run(BAD, tmp_path), retrained[1])


def test_what_does_not_fit_is_refused():
    controller = controllers.autolrs(1e-3, 1.0, **SETTINGS)
    with pytest.raises(lab.LabError, match="plans 60 steps, the run has 61"):
        train.train(
            toy.BATCH_NORM, ADAMW, controller=controller, **{**RUN, "steps": 61}
        )
    with pytest.raises(lab.LabError, match=r"search\.steerable"):
        train.train(toy.BATCH_NORM, optimizers.adamw(0.1), controller=controller, **RUN)


def test_digits_are_learned_far_better_than_at_the_worst_rates(capsys, tmp_path):
    argv = ["train", "--workload", "digits", "--steps", "80", "--out", str(tmp_path)]
    text = "autolrs:min_rate=1e-5,max_rate=1,stage_steps=80,trials=8,warmup_steps=0"
    argv += ["--chain", "adamw:learning_rate=0.003", "--schedule"]
    assert cli.main([*argv, f"{text},max_stage_steps=80"]) == 0
    said = capsys.readouterr()
    assert "80 steps trained, 80 of search beside them" in said.out
    assert "optlab: from step 0 on 80 steps at rate" in said.err
    loss = toy.log_of(tmp_path, "eval")[-1]["loss"]
    workload = workloads.get("digits")
    for rate in (1e-5, 1.0):  # With the updates of the search: 160.
        worst = train.train(workload, optimizers.adamw(rate), steps=160, measure=False)
        assert loss < 0.5 * worst.final_loss


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("autolrs:min_rate=1,max_rate=0.1", "range above 0, got 1 and 0.1"),
        ("autolrs:min_rate=x", "min_rate=x: a rate is a number above 0"),
        ("autolrs:stage_steps=42", "stage_steps=42 does not divide into 10 trials"),
        ("autolrs:stage_steps=400", "total_steps=100 is shorter than a warm-up"),
        ("autolrs:stage_steps=20", "2 losses each; a forecast needs 4"),
        ("autolrs:trials=0", "trials must be at least 2, got 0"),
        ("autolrs:trials=2.5", "trials counts and must be an int"),
        ("autolrs:warmup_rate=1", "the warmup_rate is the optimizer's learning_rate"),
        ("autolrs:total_steps=9", "unknown key of autolrs 'total_steps'"),
        ("autolrs:kapa=2", "did you mean 'kappa'"),
        ("autolr", "unknown schedule 'autolr'"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(text, said, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained"))
    argv = ["train", "--chain", "adamw", "--steps", "100", "--schedule", text]
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "first", "longest"),
    [(100, 50, 50), (1999, 990, 990), (2000, 1000, 8000), (50_000, 1000, 8000)],
)
def test_stages_suit_the_run(steps, first, longest):
    found = autolrs.plan("adamw+autolrs", steps, "digits").settings
    assert (found["stage_steps"], found["max_stage_steps"]) == (first, longest)
    assert found["min_rate"] == pytest.approx(1e-3 / 30, rel=1e-2)
    assert found["max_rate"] == pytest.approx(1e-3 * 30)
    assert autolrs.plan("adamw+autolrs", steps, "digits").build()


def test_any_schedule_can_take_the_place_of_the_chains():
    texts = {
        ("muon+wsd@20", "rex"): "muon+rex@20",
        ("muon", "autolrs:seed=1"): "muon+autolrs:seed=1",
        ("adamw:eps=1e+3+linear", "cosine"): "adamw:eps=1e+3+cosine",
    }
    for (chain, schedule), text in texts.items():
        assert autolrs.with_schedule(chain, schedule) == text
    with pytest.raises(chains.ChainError, match="unknown schedule 'autolrs'"):
        chains.parse("adamw+autolrs")


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_end(tmp_path):
    command = [sys.executable, "-m", "optlab.lab.cli", "train", "--workload=digits"]
    command += ["--size=tiny", "--chain=adamw", "--steps=80", "--schedule"]
    command += ["autolrs:stage_steps=40,trials=8", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(out):
        return subprocess.Popen(
            [*command, str(out)], env=environment, stderr=subprocess.DEVNULL
        )

    assert start(tmp_path / "whole").wait() == 0
    for wanted in (3, 12):
        process = start(tmp_path / "cut")
        log = tmp_path / "cut" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_text().count('"search"') >= wanted:
                break
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert start(tmp_path / "cut").wait() == 0
    for kind, key in itertools.product(("train", "eval", "search"), ("loss", "state")):
        whole, cut = (
            [row.get(key) for row in toy.log_of(tmp_path / name, kind)]
            for name in ("whole", "cut")
        )
        assert whole == cut
