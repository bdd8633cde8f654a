"""A race compares chains on equal terms, goes on after a kill, and reports."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib import image

from optlab import lab
from optlab.lab import plots, race, report, runs, train

ROOT = pathlib.Path(__file__).parents[2]
TINY = {"workload": "digits", "size": "tiny", "eval_every": 2}
CHAINS = ("sgd:learning_rate=0.1+linear", "muon:learning_rate=0.05+wsd@4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished race of two chains on two seeds: its plan, folder and results."""
    planned = race.plan(texts=CHAINS, steps=6, seeds=2, **TINY)
    out = tmp_path_factory.mktemp("race")
    return planned, out, race.run(planned, out, command="optlab race --some flags")


def without_times(value):
    """Results without the numbers that move with the load of the machine."""
    times = (
        "milliseconds_per_step",
        "seconds_per_step",
        "optimizer_share",
        "compile_seconds",
    )
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in times}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_the_default_race_gives_muon_40_percent_of_the_steps_of_adamw():
    planned = race.plan()
    assert [chain.name for chain in planned.chains] == ["adamw+linear", "muon+linear"]
    assert planned.chains[1].length == 0.4 * planned.chains[0].length
    assert (planned.workload, planned.seeds) == ("shakespeare", 3)
    shorter = race.plan(steps=50)
    assert [chain.length for chain in shorter.chains] == [50, 20]


def test_each_chain_has_a_schedule_of_its_own_length(finished):
    _, _, results = finished
    for chain, steps in zip(results["chains"], (6, 4), strict=True):
        assert chain["steps"] == steps
        assert chain["schedule"][-1] == [steps, 0.0]
        assert max(rate for _, rate in chain["schedule"]) == pytest.approx(
            chain["peak"]
        )


def test_every_seed_of_every_chain_is_evaluated_to_its_end(finished):
    _, out, results = finished
    for chain, steps in zip(results["chains"], ([2, 4, 6], [2, 4]), strict=True):
        assert [record["seed"] for record in chain["runs"]] == [0, 1]
        for record in chain["runs"]:
            assert [step for step, _ in record["evaluations"]] == steps
            assert record["evaluations"][-1][1] == record["final_loss"]
            assert (out / record["folder"] / "metrics.jsonl").exists()
        finals = [record["final_loss"] for record in chain["runs"]]
        assert finals[0] != finals[1]
        assert chain["final_loss"]["mean"] == pytest.approx(np.mean(finals))
        assert chain["final_loss"]["spread"] == pytest.approx(np.std(finals, ddof=1))
    assert results["target"] == results["chains"][0]["final_loss"]["mean"]


def test_all_chains_start_from_the_same_parameters_and_data(finished):
    _, out, results = finished
    first_losses = []
    for chain in results["chains"]:
        log = out / chain["runs"][1]["folder"] / "metrics.jsonl"
        rows = map(json.loads, log.read_text().splitlines())
        first_losses.append(next(row["loss"] for row in rows if row["kind"] == "train"))
    assert first_losses[0] == first_losses[1]


def test_race_json_holds_what_was_returned_and_what_it_depends_on(finished):
    planned, out, results = finished
    assert json.loads((out / "race.json").read_text()) == results
    assert results["command"] == "optlab race --some flags"
    assert {"python", "jax", "optax", "flax"} <= set(results["versions"])
    texts = [chain["chain"] for chain in results["chains"]]
    assert texts == [str(chain) for chain in planned.chains]
    again = race.plan(texts=texts, seeds=2, **TINY)
    assert again == planned


def test_times_and_sizes_are_measured(finished):
    for chain in finished[2]["chains"]:
        assert chain["milliseconds_per_step"] > 0
        assert chain["compile_seconds"] > 0
        # Timed by turns on a busy machine, a tiny optimizer may take the longer turn.
        assert 0 < chain["optimizer_share"] < 2
        assert 4 <= chain["state_bytes_per_parameter"] < 10


def test_the_report_shows_the_table_the_picture_and_the_command(finished):
    _, out, results = finished
    text = (out / "report.md").read_text()
    assert "optlab race --some flags" in text and "](race.png)" in text
    for row in report.race_rows(results):
        assert "| " + " | ".join(row) + " |" in text
    for chain in results["chains"]:
        assert f"`{chain['chain']}`" in text


def test_the_picture_is_drawn_in_the_colours_of_the_chains(finished):
    pixels = image.imread(finished[1] / "race.png")[..., :3]
    height, width, _ = pixels.shape
    assert width > 1500 and height > 700
    for colour in plots.COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        drawn = np.all(np.abs(pixels - rgb) < 0.01, axis=-1)
        left, right = drawn[:, : width // 2], drawn[:, 2 * width // 3 :]
        assert left.sum() > 300 and right.sum() > 300


def test_a_finished_run_is_read_back_not_run_again(finished, monkeypatch):
    planned, out, results = finished
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained again"))
    again = race.run(planned, out, command=results["command"])
    assert again == results


def test_a_longer_race_trains_the_new_seeds_alone(finished, monkeypatch):
    _, out, _ = finished
    asked = []

    def fail(*_, seed, **__):
        asked.append(seed)
        raise lab.LabError("enough")

    monkeypatch.setattr(train, "train", fail)
    longer = race.plan(texts=CHAINS, steps=6, seeds=3, **TINY)
    with pytest.raises(lab.LabError, match="enough"):
        race.run(longer, out)
    assert asked == [2]
    # Another setting that decides the numbers is another run.
    other = race.plan(texts=CHAINS, steps=6, seeds=2, **{**TINY, "eval_every": 3})
    with pytest.raises(lab.LabError, match="enough"):
        race.run(other, out)
    assert asked == [2, 0]


def test_a_race_that_was_killed_goes_on_and_ends_with_the_same_losses(tmp_path):
    text = "adamw:learning_rate=0.01+cosine@6"
    flags = ["--workload", "digits", "--size", "tiny", "--eval-every", "2"]
    command = [sys.executable, "-m", "optlab.lab.cli", "race", *flags]
    command += ["--chain", text, "--seeds", "2", "--out", str(tmp_path / "killed")]
    # As many devices as this process has, so that both split their work alike.
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=env, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 600
        while not (first := list(tmp_path.glob("killed/*/seed-0/result.json"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "race.json").exists()
    written = first[0].stat().st_mtime_ns

    planned = race.plan(texts=[text], seeds=2, **TINY)
    killed = race.run(planned, tmp_path / "killed")
    whole = race.run(planned, tmp_path / "whole")
    assert without_times(killed) == without_times(whole)
    assert first[0].stat().st_mtime_ns == written
    assert len(whole["chains"][0]["runs"]) == 2


def records(*curves):
    times = {
        "seconds_per_step": 0.5,
        "optimizer_share": 0.25,
        "state_bytes_per_parameter": 8.0,
    }
    return [
        {
            "evaluations": curve,
            "final_loss": curve[-1][1],
            "compile_seconds": float(i),
            **times,
        }
        for i, curve in enumerate(curves)
    ]


def test_steps_to_the_baseline_are_where_the_mean_curve_first_reaches_it():
    texts = ["adamw+cosine@40", "muon+wsd@30", "sgd+linear@30"]
    planned = race.plan(texts=texts, seeds=2, **TINY)
    slow = records([(20, 5.0), (40, 2.0)], [(20, 5.0), (40, 4.0)])
    fast = records([(10, 3.5), (20, 2.0), (30, 1.0)], [(10, 4.5), (20, 3.5), (30, 2.0)])
    bad = records([(10, 9.0), (30, 3.5)], [(10, 9.0), (30, 2.6)])
    results = race.summarise(planned, [slow, fast, bad])
    assert results["target"] == 3.0
    baseline, winner, loser = results["chains"]
    assert (baseline["steps_to_baseline"], baseline["step_ratio"]) == (40, 1.0)
    assert (winner["steps_to_baseline"], winner["step_ratio"]) == (20, 0.5)
    assert winner["steps_to_baseline_by_seed"] == [20, 30]
    assert winner["final_loss"] == {"mean": 1.5, "spread": pytest.approx(0.5**0.5)}
    assert winner["curve"][1] == [20, 2.75, 2.0, 3.5]
    assert (loser["steps_to_baseline"], loser["step_ratio"]) == (None, None)
    assert loser["steps_to_baseline_by_seed"] == [None, 30]
    # The longest compilation: later seeds find the step compiled.
    assert (winner["milliseconds_per_step"], winner["compile_seconds"]) == (500, 1)

    reached, missed = report.headlines(results)
    assert "at step 20, in 50% of its 40 steps (by seed: 20, 30)" in reached
    assert "does not reach" in missed and "(by seed: never, 30)" in missed


def test_the_picture_of_a_race_without_a_winner_is_drawn_too(tmp_path):
    planned = race.plan(texts=["adamw+cosine@4", "sgd+linear@4"], seeds=1, **TINY)
    good, bad = records([(2, 3.0), (4, 1.0)]), records([(2, 3.0), (4, 2.0)])
    plots.race(race.summarise(planned, [good, bad]), tmp_path / "race.png")
    assert image.imread(tmp_path / "race.png").std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["race.png"]


def test_equal_names_are_told_apart_by_their_settings():
    texts = ["adamw:b1=0.8+cosine", "adamw+cosine", "sgd+linear"]
    labels = race.plan(texts=texts, steps=6, **TINY).labels
    assert labels[2] == "sgd+linear"
    assert len(set(labels)) == 3 and "b1=0.8" in labels[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workload": "digit"}, "did you mean 'digits'"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"eval_every": 0}, "eval_every must be at least 1"),
        ({"texts": ["adamw+cosine", "adamw+cosine"]}, "the same"),
        ({"texts": ["adamw+wsd:decay_steps=9"]}, "do not fit"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_a_race_that_cannot_be_is_refused_when_planned(settings, said):
    with pytest.raises(ValueError, match=said):
        race.plan(**{"texts": CHAINS, "steps": 6, **TINY, **settings})


def test_a_folder_that_cannot_be_written_is_refused_before_any_run(monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(lab.LabError, match="cannot write in folder /dev/null/race"):
        race.run(race.plan(texts=CHAINS, steps=6, **TINY), "/dev/null/race")


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    runs.write_json(path, {"curve": [[1, 2.5], [2, 1.5]], "text": "[ 1 ]"})
    assert "[1, 2.5]" in path.read_text()
    with pytest.raises(ValueError):
        runs.write_json(path, {"loss": float("nan")})
    assert runs.read_json(path) == {"curve": [[1, 2.5], [2, 1.5]], "text": "[ 1 ]"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
    path.write_text('{"curve": [[1, 2')
    with pytest.raises(lab.LabError, match=r"x\.json is damaged"):
        runs.read_json(path)
