"""What the default law reaches on the curves of this project's own runs.

`benchmarks/predict_then_run.py` made them; `benchmarks/schedules.md` tells how well
each schedule was predicted, and where the predictions end.
"""

import csv
import pathlib

import numpy as np
import pytest

from optlab import laws
from optlab.lab import curves

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "curves"
FIT = ("constant", "cosine")
# Those that share warm-up and peak with the two of the fit.
UNSEEN = (
    *("linear", "rex", "uba-0.5", "uba-4", "cosine-power"),
    *("wsd-sqrt", "wsd-linear", "wsd-cosine", "infinite"),
)


def read(name, steps, seed):
    return curves.read(FOLDER / f"{name}-{steps}-seed-{seed}.csv")


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def given(seed):
    return [read(name, 250, seed) for name in FIT]


def final_errors(fitted, steps, seed):
    found = {}
    for name in UNSEEN:
        curve = read(name, steps, seed)
        predicted = laws.compare(fitted, curve).loss[-1]
        found[name] = predicted / curve.loss[-1] - 1
    return found


def test_final_losses_of_unseen_schedules_are_predicted(given, seed):
    found = final_errors(laws.fit(given), 250, seed)
    assert max(map(abs, found.values())) < 0.015
    assert np.mean(np.abs([*found.values()])) < 0.006
    # Twice the steps are where a power law ends: too high, by a few per cent.
    twice = final_errors(laws.fit(given), 500, seed)
    assert max(map(abs, twice.values())) < 0.03


def test_the_default_law_beats_the_others(given, seed):
    errors = {}
    for name, law in (
        ("progress", laws.progress_law()),
        ("annealing", laws.annealing_law(decay=0.9)),
        ("power", laws.power_law()),
    ):
        found = final_errors(laws.fit(given, law), 250, seed)
        errors[name] = np.mean(np.abs([*found.values()]))
    assert errors["progress"] < 0.7 * errors["annealing"] < 0.5 * errors["power"]


def test_each_file_has_the_rate_of_every_fifth_step():
    files = sorted(FOLDER.glob("*.csv"))
    assert len(files) >= 50
    for file in files:
        with file.open(newline="") as text:
            rows = list(csv.DictReader(text))
        steps = [int(row["step"]) for row in rows]
        assert steps == list(range(0, steps[-1] + 1, 5)), file
        assert rows[-1]["loss"], file
