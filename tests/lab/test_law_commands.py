"""`optlab fit`, `predict` and `design`, from files to numbers, files and pictures."""

import csv
import json
import pathlib

import numpy as np
import pytest
from matplotlib import image

from optlab import laws, optimizers, schedules
from optlab.lab import cli, forecasts, rates, train
from tests.lab import toy

STEPS, PEAK, WARMUP = 600, 0.01, 30

# The schedules of the toy's runs; laws see the first two of them.
SCHEDULES = {
    "constant": schedules.constant(PEAK, warmup_steps=WARMUP),
    "cosine": schedules.cosine(PEAK, total_steps=STEPS, warmup_steps=WARMUP),
    "wsd": schedules.wsd(
        PEAK,
        total_steps=STEPS,
        decay_steps=150,
        warmup_steps=WARMUP,
        decay=schedules.shapes.linear,
    ),
}


def losses(rate: np.ndarray, decay: float = 0.97) -> np.ndarray:
    """An annealing law written out: loss after each update."""
    fall = np.maximum(0, -np.diff(rate, prepend=rate[0]))
    delayed = np.zeros(len(rate))
    for step in range(1, len(rate)):
        delayed[step] = decay * delayed[step - 1] + fall[step]
    return 2 + 0.5 * (rate.cumsum() + 0.01) ** -0.5 - 0.9 * delayed.cumsum()


def write_csv(path: pathlib.Path, name: str) -> pathlib.Path:
    rate = np.append(rates.every(SCHEDULES[name], STEPS), 0.0)
    step = np.arange(WARMUP, STEPS + 1, 10)
    loss = losses(rate)[step - 1]
    rows = zip(step.tolist(), rate[step].tolist(), loss.tolist(), strict=True)
    lines = [f"{a},{b},{c}" for a, b, c in rows]
    path.write_text("\n".join(["step,lr,loss", *lines]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Curves of three runs, and a law fitted on two of them."""
    found = tmp_path_factory.mktemp("laws")
    for name in SCHEDULES:
        write_csv(found / f"{name}.csv", name)
    curves = [str(found / f"{name}.csv") for name in ("constant", "cosine")]
    out = ["--out", str(found / "law.json"), "--plot", str(found / "law.png")]
    assert cli.main(["fit", *curves, *out]) == 0
    return found


def said(capsys, *argv: object) -> str:
    assert cli.main(list(map(str, argv))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fails(capsys, *argv: object) -> tuple[int, str]:
    code = cli.main(list(map(str, argv)))
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return code, error


def test_fit_prints_parameters_and_errors_and_writes_the_law(folder, capsys, tmp_path):
    curves = [folder / "constant.csv", folder / "cosine.csv"]
    law = tmp_path / "new" / "law.json"
    assert cli.main(["fit", *map(str, curves), "--out", str(law)]) == 0
    captured = capsys.readouterr()
    fitted = laws.from_json(json.loads(law.read_text()))
    for name, value in fitted.params.items():
        assert f"{name} " in captured.out and f"{value:.4g}" in captured.out
    assert " constant " in captured.out.replace("\n", " ")
    assert f"Written: {law}" in captured.out
    warned = [
        line
        for line in captured.err.splitlines()
        if line.startswith("optlab: warning: ")
    ]
    assert len(warned) == len(fitted.warnings)
    assert law.read_text() == (folder / "law.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", laws.LAWS)
def test_every_law_can_be_fitted(name, folder, capsys, tmp_path):
    out = said(
        capsys,
        *("fit", folder / "constant.csv", folder / "cosine.csv"),
        *("--law", name, "--out", tmp_path / "law.json"),
    )
    assert out.startswith(f"The {name} law")


def test_the_help_of_fit_names_every_law_and_the_default(folder, capsys):
    out = " ".join(said(capsys, "fit", "--help").split())
    assert all(name in out for name in laws.LAWS)
    default = forecasts.read_law(folder / "law.json").law.name
    assert f"{default} (the default)" in out


def test_an_unseen_run_is_compared_with_the_law(folder, capsys, tmp_path):
    out = tmp_path / "errors.json"
    text = said(
        capsys,
        *("predict", folder / "law.json", "--csv", folder / "wsd.csv", "--json", out),
    )
    errors = json.loads(out.read_text())
    keys = ["r2", "mean_relative_error", "max_relative_error", "final_relative_error"]
    assert list(errors) == keys
    assert errors["r2"] > 0.9 and 0 < errors["mean_relative_error"] < 0.02
    assert errors["max_relative_error"] >= abs(errors["final_relative_error"])
    assert f"{errors['r2']:.5f}" in text
    assert f"{errors['mean_relative_error']:.3%}" in text


def test_the_errors_are_those_of_the_prediction(folder):
    fitted = forecasts.read_law(folder / "law.json")
    rate = rates.every(SCHEDULES["wsd"], STEPS)
    step = np.arange(0, STEPS + 1, 20)
    measured = np.append([9.0], losses(rate)[step[1:] - 1])
    run = forecasts.compare(fitted, laws.Curve(step, measured, rate, "wsd"))
    # What was measured in the warm-up is no matter.
    late = step >= WARMUP
    assert run.step.tolist() == step[late].tolist()
    predicted = laws.predict(fitted, SCHEDULES["wsd"], STEPS).loss[step[late] - 1]
    assert run.prediction.loss == pytest.approx(predicted, rel=1e-5)
    off = predicted / measured[late] - 1
    assert run.errors["mean_relative_error"] == pytest.approx(abs(off).mean())


def test_schedules_are_ranked_by_their_final_losses(folder, capsys, tmp_path):
    out, table = tmp_path / "ranking.json", tmp_path / "curves.csv"
    text = said(
        capsys,
        *("predict", folder / "law.json", "--steps", STEPS, "--peak", PEAK),
        *("--schedule", "constant", "--schedule", "wsd:decay=linear"),
        *("--warmup-steps", WARMUP, "--json", out, "--out", table),
    )
    best, last = json.loads(out.read_text())
    assert (best["schedule"], last["schedule"]) == ("wsd:decay=linear", "constant")
    assert best["low"] < best["final_loss"] < best["high"] < last["final_loss"] + 1
    assert text.index("wsd:decay=linear") < text.index("constant")
    assert f"{best['final_loss']:.4f}" in text
    rate = rates.every(SCHEDULES["constant"], STEPS)
    assert last["final_loss"] == pytest.approx(losses(rate)[-1], rel=0.01)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * STEPS and rows[0]["name"] == "wsd:decay=linear"
    assert float(rows[-1]["loss"]) == pytest.approx(last["final_loss"], rel=1e-6)
    assert float(rows[-1]["low"]) < float(rows[-1]["loss"]) < float(rows[-1]["high"])


def test_predictions_far_from_the_fit_come_with_a_warning(folder, capsys):
    argv = ["predict", folder / "law.json", "--schedule", "cosine", "--steps"]
    assert cli.main([*map(str, argv), str(STEPS), "--peak", str(PEAK)]) == 0
    assert "warning" not in capsys.readouterr().err
    for steps, peak in ((4 * STEPS, PEAK), (STEPS, 3 * PEAK)):
        assert cli.main([*map(str, argv), str(steps), "--peak", str(peak)]) == 0
        captured = capsys.readouterr()
        assert captured.err.startswith("optlab: warning: ")
        assert captured.err.count("\n") == 1
        assert "final loss" in captured.out


def test_a_designed_schedule_is_written_and_no_worse_than_the_usual(folder, capsys):
    out = folder / "best.csv"
    text = said(
        capsys,
        *("design", folder / "law.json", "--steps", STEPS, "--peak", PEAK),
        *("--warmup-steps", WARMUP, "--out", out),
    )
    with out.open() as file:
        written = [float(row["rate"]) for row in csv.DictReader(file)]
    assert len(written) == STEPS
    assert max(written) == pytest.approx(PEAK) and min(written) >= 0
    assert written[:WARMUP] == pytest.approx(PEAK * np.arange(WARMUP) / WARMUP)
    rows = text[text.index("final loss") :].splitlines()
    assert rows[2].split()[0] == "designed"
    assert len(rows) > 8 and "area S1" in text
    assert image.imread(folder / "best.png").std() > 0.05


def test_a_law_and_what_it_foretells_are_drawn(folder, capsys, tmp_path):
    pictures = [folder / "law.png", tmp_path / "run.png", tmp_path / "cosine.png"]
    law = folder / "law.json"
    said(capsys, "predict", law, "--csv", folder / "wsd.csv", "--out", pictures[1])
    given = ("--schedule", "cosine", "--steps", STEPS, "--peak", PEAK)
    said(capsys, "predict", law, *given, "--out", pictures[2])
    for picture in pictures:
        assert image.imread(picture).std() > 0.05


def held(measured: np.ndarray) -> forecasts.Watch:
    """Watches a run of 200 steps whose forecast is 1 +- 0.1."""
    step, ones = np.arange(1, 201), np.ones(200)
    foretold = laws.Prediction(step, ones, 0.9 * ones, 1.1 * ones)
    return forecasts.watch(forecasts.Comparison("run", measured, foretold))


def test_a_run_that_leaves_the_interval_raises_the_alarm():
    step = np.arange(1, 201)
    scatter = 1 + 0.3 * (-1.0) ** step
    assert held(scatter).alarm is None
    # Four losses of 1.3 raise the mean of ten above 1.1.
    late = held(np.where(step > 100, 1.3, 1.0))
    assert late.alarm == 104
    assert late.step[0] == 10 and late.mean[-1] == pytest.approx(1.3)
    assert held(np.where(step > 100, 0.7, 1.0)).alarm == 104


def test_a_run_of_the_lab_goes_from_its_log_to_its_forecast(capsys, tmp_path):
    for name, schedule in {
        "constant": schedules.constant(0.01, warmup_steps=3),
        "cosine": schedules.cosine(0.01, total_steps=60, warmup_steps=3),
    }.items():
        train.train(
            toy.WORKLOAD,
            optimizers.adamw(schedule),
            steps=60,
            eval_every=5,
            out=tmp_path / name,
        )
    law, runs = tmp_path / "law.json", (tmp_path / "constant", tmp_path / "cosine")
    said(capsys, "fit", *runs, "--law", "power", "--losses", "eval", "--out", law)
    for losses_of in ("eval", "train"):
        argv = ("--csv", runs[1], "--losses", losses_of, "--out", tmp_path / "a.png")
        assert "cosine" in said(capsys, "predict", law, *argv)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def train_rows(run: pathlib.Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def test_a_run_that_follows_a_law_logs_its_predictions(folder, capsys, tmp_path):
    law, out = folder / "law.json", tmp_path / "run"
    chain = f"sgd:learning_rate={PEAK}+cosine:warmup_steps=2@20"
    argv = ["train", "--workload", "digits", "--size", "tiny", "--chain", chain]
    argv += ["--law", law, "--out", out]
    text = said(capsys, *argv)
    assert "interval of the prediction" in text
    assert image.imread(out / "forecast.png").std() > 0.05
    found = train_rows(out)
    schedule = schedules.cosine(PEAK, total_steps=20, warmup_steps=2)
    wanted = laws.predict(forecasts.read_law(law), schedule, 20).loss
    # The first update has the rate 0: before the second there is no progress.
    assert [row["predicted_loss"] for row in found[:2]] == [None, None]
    assert [row["predicted_loss"] for row in found[2:]] == pytest.approx(
        wanted[1:-1], rel=1e-4
    )
    ends = {row["predicted_final_loss"] for row in found}
    assert ends.pop() == pytest.approx(wanted[-1], rel=1e-6) and not ends
    # The predictions change no update, and another law is another run.
    argv[argv.index(law)] = other = tmp_path / "other.json"
    other.write_text(law.read_text() + "\n")
    assert "another run" in fails(capsys, *argv)[1]
    plain = ["train", *argv[1:7], "--out", tmp_path / "plain"]
    said(capsys, *plain)
    others = train_rows(tmp_path / "plain")
    assert [row["loss"] for row in others] == [row["loss"] for row in found]


SCHEDULE = "--schedule cosine --steps 600 --peak 0.01"

# Command lines that are wrong or cannot work; LAW and RUN stand for files.
WRONG = {
    "fit": (2, "CURVE is missing"),
    "fit RUN --law anealing": (2, "unknown law 'anealing'; did you mean 'annealing'"),
    "fit RUN --losses valid": (2, "<train|eval>"),
    "fit RUN --warmup-steps -1": (2, "non-negative"),
    "fit RUN --losses eval": (1, "no column with the eval loss"),
    "fit /nowhere/a.csv": (1, "/nowhere/a.csv: No such file"),
    "fit RUN --law power --out /dev/null/law.json": (
        1,
        "cannot write /dev/null/law.json",
    ),
    "fit RUN --plot law.gif": (1, "law.gif: the name of a picture ends in one of"),
    "predict": (2, "LAW is missing"),
    "predict LAW": (2, "give --csv CURVE, or --schedule once or more"),
    "predict LAW --csv RUN --schedule cosine": (2, "give --csv CURVE, or --schedule"),
    "predict LAW --schedule cosine": (2, "--schedule needs --steps and --peak"),
    "predict LAW --schedule cosine --steps 9": (2, "--schedule needs --steps and"),
    f"predict LAW {SCHEDULE} --schedule cosin": (2, "did you mean 'cosine'"),
    f"predict LAW {SCHEDULE} --schedule cosine": (2, "'cosine' is given twice"),
    f"predict LAW {SCHEDULE} --warmup-steps 600": (2, "warmup_steps"),
    f"predict RUN {SCHEDULE}": (1, "no law ("),
    f"predict EMPTY {SCHEDULE}": (1, "no law ("),
    f"predict LIST {SCHEDULE}": (1, "no law ("),
    f"predict BINARY {SCHEDULE}": (1, "no law ("),
    f"predict /nowhere/law.json {SCHEDULE}": (1, "No such file or directory; `optlab"),
    f"predict LAW {SCHEDULE} --out a.gif": (1, "a.gif: the name of a picture ends in"),
    f"predict LAW {SCHEDULE} --json /dev/null/a": (1, "cannot write /dev/null/a"),
    "predict LAW --csv /nowhere/a.csv": (1, "/nowhere/a.csv: No such file"),
    "train --law /nowhere/law.json": (1, "No such file or directory; `optlab fit`"),
    "train --law RUN": (1, "no law ("),
    "train --law LAW --schedule autolrs": (2, "--law needs a schedule; autolrs has"),
    "design LAW": (2, "--steps and --peak are wanted"),
    "design LAW --steps 600": (2, "--steps and --peak are wanted"),
    "design LAW --steps 600 --peak 0": (2, "a number above 0 is wanted"),
    "design LAW --steps 9 --peak 1 --warmup-steps 9": (2, "warmup_steps"),
    "design LAW --steps 9 --peak 1 --out a.txt": (1, "a.txt: rates are written to a"),
    "design RUN --steps 9 --peak 1": (1, "no law ("),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_is_said_in_one_line(
    line, folder, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    contents = {"EMPTY": b"", "LIST": b"[1, 2]", "BINARY": b"\xff\x00\x9c"}
    words = {"LAW": folder / "law.json", "RUN": folder / "cosine.csv"}
    for name, content in contents.items():
        words[name] = tmp_path / name
        words[name].write_bytes(content)
    code, message = WRONG[line]
    found = fails(capsys, *(words.get(word, word) for word in line.split()))
    assert found[0] == code and message in found[1]
    assert {path.name for path in tmp_path.iterdir()} == set(contents)


def test_curves_of_different_peaks_are_refused(folder, capsys, tmp_path):
    other = tmp_path / "other.csv"
    lines = (folder / "cosine.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    scaled = [f"{step},{3 * float(lr)},{loss}" for step, lr, loss in cells]
    other.write_text("\n".join([lines[0], *scaled]))
    code, message = fails(capsys, "fit", folder / "constant.csv", other)
    assert code == 1 and "peak" in message
