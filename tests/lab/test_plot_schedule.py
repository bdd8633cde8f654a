"""Schedules are drawn and written from their texts alone."""

import csv
import json

import numpy as np
import pytest
from matplotlib import image

from optlab import lab, schedules
from optlab.lab import cli, parts, plots, rates


def fails(capsys, *argv: str) -> tuple[int, str]:
    code = cli.main(["plot-schedule", *argv])
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return code, said


def test_a_schedule_is_built_from_its_text():
    built = parts.schedule("wsd:decay=cosine,decay_steps=30", 0.5, 100)
    wanted = schedules.wsd(
        0.5,
        total_steps=100,
        decay_steps=30,
        decay=schedules.shapes.cosine,
        warmup_steps=5,
    )
    assert [built(t) for t in range(101)] == [wanted(t) for t in range(101)]
    own = parts.schedule("cosine:warmup_steps=7", 0.5, 100, warmup_steps=9)
    given = parts.schedule("cosine", 0.5, 100, warmup_steps=9)
    assert own(7) == given(9) == 0.5 and own(6) < 0.5 and given(8) < 0.5
    assert parts.schedule("constant", 0.5, 100)(99) == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cosin", "schedule 'cosin': unknown schedule 'cosin'; did you mean 'cosine'"),
        ("", "unknown schedule ''"),
        ("cosine:k", "settings are key=value"),
        ("cosine:peak=1", "the peak is given apart"),
        ("cosine:total_steps=9", "total_steps is given apart"),
        ("cosine:decay_steps=9", "unknown key of cosine 'decay_steps'"),
        ("cosine:end_value=2", "end_value"),
        ("cosine:warmup_steps=100", "warmup_steps"),
        ("wsd:decay_steps=100", "decay_steps"),
        ("wsd:decay=cos", "did you mean 'cosine'"),
    ],
)
def test_a_bad_text_is_refused_with_the_reason(text, said):
    with pytest.raises(parts.ChainError, match="schedule '") as error:
        parts.schedule(text, 1.0, 100)
    assert said in str(error.value)


def test_rates_are_those_of_the_updates():
    schedule = schedules.cosine(0.1, total_steps=50, warmup_steps=5)
    steps, values = rates.line(schedule, 50)
    assert steps.tolist() == list(range(51))
    assert (values[:50] == rates.every(schedule, 50)).all()
    assert values[[0, 5, 50]] == pytest.approx([0, 0.1, 0])
    # A long one is thinned out, with both ends kept.
    steps, values = rates.line(schedule, 10**6)
    assert len(steps) == rates.POINTS and steps[[0, -1]].tolist() == [0, 10**6]
    assert values[-1] == 0


def test_rates_are_written_and_read_back(tmp_path):
    schedule = schedules.cosine(0.1, total_steps=50, warmup_steps=5)
    wanted = rates.every(schedule, 50)
    rates.write(tmp_path / "new" / "a.csv", wanted)
    rates.write(tmp_path / "a.json", wanted)
    with (tmp_path / "new" / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(50))
    from_csv = [float(row["rate"]) for row in rows]
    from_json = json.loads((tmp_path / "a.json").read_text())
    assert from_json == {"step": list(range(50)), "rate": from_csv}
    # As float32, the same numbers.
    assert (np.float32(from_csv) == np.float32(wanted)).all()
    with pytest.raises(lab.LabError, match=r"a\.txt: rates are written to a \.csv or"):
        rates.write(tmp_path / "a.txt", wanted)
    with pytest.raises(lab.LabError, match="cannot write"):
        rates.write(tmp_path / "a.json" / "a.csv", wanted)


def colours_in(path) -> list[int]:
    """Counts the pixels of each of the colours."""
    pixels = image.imread(path)[..., :3]
    wanted = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in plots.COLOURS]
    return [int(np.all(abs(pixels - rgb) < 0.01, axis=-1).sum()) for rgb in wanted]


def test_a_dozen_schedules_are_drawn_with_their_names(tmp_path, capsys):
    texts = ["constant", "cosine", "linear"]
    texts += [f"wsd:decay_steps={n},decay=linear" for n in range(50, 500, 50)]
    path = tmp_path / "new" / "a.png"
    argv = ["--steps", "600", "--peak", "3e-4", "--warmup-steps", "20"]
    assert cli.main(["plot-schedule", *texts, *argv, "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"Written: {path}\n"
    assert min(colours_in(path)) > 300
    few = tmp_path / "few.png"
    assert cli.main(["plot-schedule", "cosine", "--out", str(few)]) == 0
    assert [n > 300 for n in colours_in(few)] == [True] + [False] * 6


def test_a_picture_may_be_a_drawing(tmp_path):
    line = rates.line(schedules.constant(0.1), 10)
    for ending, first in ((".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / f"a{ending}"
        plots.schedules({"constant": line}, path)
        assert path.read_bytes().startswith(first)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("", 2, "SCHEDULE is missing"),
        ("cosine cosin", 2, "did you mean 'cosine'"),
        ("cosine cosine", 2, "the schedule 'cosine' is given twice"),
        ("cosine --peak 0", 2, "a number above 0 is wanted"),
        ("cosine --peak nan", 2, "a number above 0 is wanted"),
        ("cosine --peak inf", 2, "a number above 0 is wanted"),
        ("cosine --steps 0", 2, "not a positive integer"),
        ("cosine --warmup-steps -1", 2, "non-negative"),
        ("cosine --steps 10 --warmup-steps 10", 2, "warmup_steps"),
        ("cosine --out a.gif", 1, "a.gif: the name of a picture ends in one of .png"),
        ("cosine --out /dev/null/a.png", 1, "cannot write /dev/null/a.png"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(line, code, said, capsys):
    found = fails(capsys, *line.split())
    assert found[0] == code and said in found[1]


def test_families_get_a_panel_each(tmp_path, capsys):
    heights = []
    for texts in (["cosine", "linear"], ["cosine", "wsd", "cycles:cycle_steps=50/50"]):
        path = tmp_path / "families.png"
        argv = [*texts, "--steps", "100", "--families", "--out", str(path)]
        assert cli.main(["plot-schedule", *argv]) == 0
        heights.append(image.imread(path).shape[0])
    assert heights[1] > 2 * heights[0]
