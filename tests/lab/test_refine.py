"""`optlab refine`: from a run's gradient norms to a schedule that a chain follows."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from optlab import lab, schedules
from optlab.lab import chains, cli, parts, rate_file, rates, refine

STEPS = 24
NORMS = np.linspace(4.0, 1.0, STEPS) ** 2


def row(step, **more):
    """A row of a log."""
    norms = {"gradient_norm": NORMS[step] / 10, "gradient_l1_norm": NORMS[step]}
    return {"kind": "train", "step": step, "loss": 1.0, **norms, **more}


def write_log(folder: pathlib.Path, rows) -> pathlib.Path:
    lines = [json.dumps(r) + "\n" for r in rows]
    lines.insert(3, json.dumps({"kind": "eval", "step": 3, "loss": 2.0}) + "\n")
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def run(tmp_path):
    return write_log(tmp_path / "run", map(row, range(STEPS)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands write into a folder of their own."""
    monkeypatch.chdir(tmp_path)


def said(capsys, *argv: str) -> str:
    assert cli.main(["refine", *argv]) in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "scale"), [("adam", 1.0), ("sgd", 0.1)], ids=["adam", "sgd"]
)
def test_each_method_reads_its_own_norm(run, method, scale):
    for source in (run, str(run), run / "metrics.jsonl"):
        refined = refine.refine(source, method=method)
        np.testing.assert_allclose(refined.norms, scale * NORMS)
    wanted = schedules.refined(
        scale * NORMS, peak=1.0, total_steps=STEPS, method=method
    )
    np.testing.assert_array_equal(
        rates.every(refined.schedule, STEPS), rates.every(wanted, STEPS)
    )
    assert refined.steps == STEPS


def test_a_row_cut_off_at_the_end_is_left_out(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    assert len(refine.refine(run).norms) == STEPS


@pytest.mark.parametrize("out", ["refined.json", "deep/table.csv"])
def test_the_command_writes_rates_and_a_picture(run, out, capsys, tmp_path):
    assert cli.main(["refine", str(run), "--out", out]) == 0
    printed = capsys.readouterr().out
    picture = str(pathlib.Path(out).with_suffix(".png"))
    assert f"Written: {out} and {picture}" in printed
    found = rate_file.read(out)
    refined = refine.refine(run)
    np.testing.assert_allclose(found, rates.every(refined.schedule, STEPS), rtol=1e-6)
    assert found.max() == 1.0 and f"peaks at step {found.argmax()}\n" in printed
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
    assert {(0xD1, 0x49, 0x5B), (0x6B, 0x72, 0x80)} <= colours  # refined, linear


def test_another_length_is_a_flag(run):
    assert cli.main(["refine", "--steps", "60", str(run), "--method", "sgd"]) == 0
    assert len(rate_file.read("refined.json")) == 60


def test_a_real_run_is_refined_and_the_next_one_follows_the_file(capsys):
    digits = ["--workload", "digits", "--size", "tiny"]
    train = ["train", *digits, "--out"]
    assert cli.main([*train, "first", "--chain", "adamw+linear@14"]) == 0
    assert cli.main(["refine", "first"]) == 0
    chain = "adamw:learning_rate=0.01+file:path=refined.json@14"
    assert cli.main([*train, "second", "--chain", chain]) == 0
    log = pathlib.Path("second/metrics.jsonl").read_text().splitlines()
    seen = [json.loads(line).get("learning_rate") for line in log]
    seen = [rate for rate in seen if rate is not None]
    np.testing.assert_allclose(seen, 0.01 * rate_file.read("refined.json"), rtol=1e-5)
    # With another content the same text is another run.
    assert cli.main(["refine", "first", "--method", "sgd"]) == 0
    capsys.readouterr()
    assert cli.main([*train, "second", "--chain", chain]) == 1
    assert "another" in capsys.readouterr().err


def build(text, peak=1.0, steps=4):
    return rates.every(parts.schedule(text, peak, steps), steps)


def test_a_file_is_scaled_to_the_peak_and_stretched_to_the_run(tmp_path):
    path = tmp_path / "rates.json"
    rates.write(path, np.array([0.0, 0.2, 0.1, 0.05]))
    text = f"file:path={path}"
    np.testing.assert_allclose(build(text, 0.5), [0, 0.5, 0.25, 0.125], rtol=1e-6)
    np.testing.assert_allclose(build(text, 2.0, 2), [0, 0.5], rtol=1e-6)
    # A traced peak, as a vmapped sweep has it.
    traced = jax.jit(lambda peak: parts.schedule(text, peak, 4)(2))
    np.testing.assert_allclose(traced(3.0), 1.5, rtol=1e-6)
    longer = build(text, 1.0, 7)
    np.testing.assert_allclose(longer, [0, 0.5, 1, 0.75, 0.5, 0.375, 0.25], rtol=1e-6)


def test_a_chain_of_a_file_is_explicit_about_its_content(tmp_path):
    path = tmp_path / "a.b-c_1/rates.csv"
    rates.write(path, np.array([1.0, 0.5]))
    chain = chains.parse(f"sgd+file:path={path}").explicit(10)
    text = str(chain)
    assert f"file:path={path},digest=d" in text or f",path={path}" in text
    _, schedule = chains.parse(text).build()
    assert schedule(9) == np.float32(0.5 * chain.optimizer.settings["learning_rate"])
    rates.write(path, np.array([1.0, 0.25]))
    with pytest.raises(chains.ChainError, match="not what it was"):
        chains.parse(text).build()
    assert str(chains.parse(f"sgd+file:path={path}").explicit(10)) != text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[1, 2]", "holds no rates"),
        ("a.json", "{", "holds no rates"),
        ("a.json", '{"step": [0, 1], "rate": [1, "x"]}', "holds no rates"),
        ("a.json", '{"step": [0, 1], "rate": [1]}', "'step' must be 0, 1, 2"),
        ("a.json", '{"step": [1, 2], "rate": [1, 1]}', "'step' must be 0, 1, 2"),
        ("a.json", '{"step": [], "rate": []}', "'step' must be 0, 1, 2"),
        ("a.json", '{"step": [0, 1], "rate": [1, NaN]}', "rate of step 1 is nan"),
        ("a.json", '{"step": [0, 1], "rate": [-1, 1]}', "rate of step 0 is -1"),
        ("a.json", '{"step": [0], "rate": [0]}', "every rate is 0"),
        ("a.csv", "", "holds no rates"),
        ("a.csv", "step,lr\n0,1\n", "holds no rates"),
        ("a.csv", "step,rate\n0,1\n1\n", "holds no rates"),
        ("a.csv", "step,rate\n0,1\n1,x\n", "holds no rates"),
        ("a.csv", "\x00\xff", "holds no rates"),
    ],
)
def test_a_file_without_rates_is_refused(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=words) as error:
        build(f"file:path={path}")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file", "which file"),
        ("file:path=no/such.json", "No such file"),
        ("file:path=.", "Is a directory"),
        ("file:path=no.json,peak=1", "the peak is given apart"),
        ("file:paths=a", "did you mean 'path'"),
    ],
)
def test_a_text_without_a_file_is_refused(text, words):
    with pytest.raises(chains.ChainError, match=words):
        build(text)


def broken(index, **changes):
    return [row(s) | (changes if s == index else {}) for s in range(STEPS)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (broken(5, gradient_l1_norm=None), "line 7: 'gradient_l1_norm' was not finite"),
        (broken(5, gradient_l1_norm=-1.0), "line 7: 'gradient_l1_norm' is -1.0"),
        (broken(5, gradient_l1_norm="x"), "line 7: 'gradient_l1_norm' is 'x'"),
        (broken(5, step=6), "line 7: step 6 where 5 should be"),
        ([row(s) for s in range(9)], "9 steps; .* at least 10"),
        ([], "0 steps; .* at least 10"),
        ([row(s, gradient_l1_norm=0.0) for s in range(STEPS)], "none of the 24 norms"),
        ([{"kind": "train", "step": 0, "loss": 1.0}], "no 'gradient_l1_norm'; this"),
        ([{"loss": 1.0}], "line 1: no row of a log"),
    ],
)
def test_a_run_without_its_norms_is_refused(tmp_path, rows, words):
    folder = write_log(tmp_path / "bad", rows)
    with pytest.raises(lab.LabError, match=words):
        refine.refine(folder)


def test_what_is_no_run_is_refused_in_one_line(capsys, tmp_path):
    assert "RUN is missing" in said(capsys)
    assert "no run, for there is no file" in said(capsys, "no-such-run")
    (tmp_path / "empty").mkdir()
    assert "no file empty/metrics.jsonl" in said(capsys, "empty")
    assert "is no flag" in said(capsys, "a", "b")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "no text" in said(capsys, "binary.jsonl")


def test_a_name_that_cannot_be_written_is_refused(run, capsys):
    assert ".csv or a .json" in said(capsys, str(run), "--out", "refined.txt")
    assert "cannot write" in said(capsys, str(run), "--out", "/dev/null/a.json")
    assert "pdf.gz" in said(capsys, str(run), "--out", "refined.pdf.gz")


def test_a_flag_without_sense_is_refused(run, capsys):
    assert "--steps=0" in said(capsys, str(run), "--steps", "0")
    assert "<adam|sgd>" in said(capsys, str(run), "--method", "lion")
