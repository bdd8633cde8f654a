"""A run that is killed, whenever, and started again ends as if nothing had been."""

import functools
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

COMMAND = (sys.executable, "-m", "tests.lab.killed_run")
ROOT = pathlib.Path(__file__).parents[2]


def start(out, workload, moment="never"):
    return subprocess.Popen(
        (*COMMAND, str(out), workload, moment),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(out, workload):
    """Runs the command to its end; returns its output and the losses in the log."""
    process = start(out, workload)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return stdout, stderr, [(r["kind"], r["step"], r["loss"]) for r in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """From a workload to what an undisturbed run of it leaves; run once."""
    return functools.cache(
        lambda workload: finish(tmp_path_factory.mktemp("undisturbed"), workload)
    )


def check_same_end(out, workload, undisturbed):
    digest, errors, losses = finish(out, workload)
    assert (digest, losses) == (undisturbed(workload)[0], undisturbed(workload)[2])
    assert errors == ""


@pytest.mark.parametrize(
    ("workload", "moment", "left"),
    [
        ("shakespeare", "training", [4, 6]),
        ("shakespeare", "half-written checkpoint", [2, 4]),
        ("toy", "before the checkpoint is committed", [2, 4]),
        ("toy", "after the checkpoint", [2, 4, 6]),
        ("toy", "removing an old checkpoint", [2, 4, 6]),
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(
    tmp_path, undisturbed, workload, moment, left
):
    process = start(tmp_path, workload, moment)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    folder = tmp_path / "checkpoints"
    names = [path.name for path in folder.iterdir()]
    assert sorted(int(name) for name in names if name.isdecimal()) == left
    assert len(names) == len(left) + ("commit" in moment or "half" in moment)
    check_same_end(tmp_path, workload, undisturbed)
    assert sorted(int(path.name) for path in folder.iterdir()) == [8, 9]


@pytest.mark.parametrize("wanted", [2, 6])
def test_a_kill_from_outside_loses_nothing(tmp_path, undisturbed, wanted):
    process = start(tmp_path, "toy")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "checkpoints" / f"{wanted:08d}").exists():
            break
        time.sleep(0.002)
    process.kill()
    process.communicate()
    check_same_end(tmp_path, "toy", undisturbed)
