"""Two real processes train as one does; a checkpoint goes on with fewer devices."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import lab
from optlab.lab import checkpoints, cli, placement, processes
from tests.lab import distributed_run, test_train

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ("-m", "tests.lab.distributed_run")
COMMAND = ("-m", "optlab.lab.cli")

# Another order of the sums in the collectives is all that may differ.
CLOSE = 1e-6

# What a process says that has lost another one: what it knew before, and what it met.
SAYS = "if a process ends, the others end within a minute, and the same commands go on"
MEETS = re.compile("another (process|task)|gloo")


def start(*arguments, second=(), folders=(ROOT, ROOT)):
    """Starts two processes of four devices; the second may get more arguments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        subprocess.Popen(
            (sys.executable, *arguments, *(second if index else ())),
            cwd=folder,
            env={**shared, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, folder in enumerate(folders)
    ]


def finish(*arguments, code=0, **settings):
    """Runs processes to their end; returns output and errors of each."""
    running = start(*arguments, **settings)
    said = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [code, code], said
    return said


def losses(folder):
    rows = test_train.log_of(folder)
    return [(row["kind"], row["step"], row["loss"]) for row in rows]


def require_close(found, wanted):
    assert [row[:2] for row in found] == [row[:2] for row in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a[2] == pytest.approx(b[2], rel=CLOSE), (a, b)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder and digest of a run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    (said, _), _ = finish(*TRAIN, str(folder))
    return folder, re.search("digest .*", said)[0]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Folder of the same run of one process with as many devices."""
    folder = tmp_path_factory.mktemp("one") / "run"
    distributed_run.run(mesh=distributed_run.make_mesh(jax.devices()), out=folder)
    return folder


def test_two_processes_train_as_one_does(undisturbed, single, tmp_path):
    folder, _ = undisturbed
    require_close(losses(folder), losses(single))
    distributed_run.run(out=tmp_path)
    require_close(losses(folder), losses(tmp_path))
    # The checkpoint of two processes goes on in one, on a single device.
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / "00000009")
    result, _ = distributed_run.run(out=copy)
    assert result.resumed_from == 6
    require_close(losses(copy), losses(folder))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_ends_both_and_they_go_on_to_the_same_end(undisturbed, tmp_path, victim):
    running = start(*TRAIN, str(tmp_path), str(victim))
    running[victim].communicate(timeout=600)
    assert running[victim].returncode == -signal.SIGKILL
    begin = time.monotonic()
    _, errors = running[1 - victim].communicate(timeout=60)
    assert time.monotonic() - begin < 60
    assert running[1 - victim].returncode not in (0, -signal.SIGKILL)
    assert SAYS in errors and MEETS.search(errors)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["00000003", "00000006"]
    (said, _), _ = finish(*TRAIN, str(tmp_path))
    assert re.search("digest .*", said)[0] == undisturbed[1]
    assert losses(tmp_path) == losses(undisturbed[0])


@pytest.mark.slow
def test_a_request_to_end_is_met_by_both_with_a_checkpoint(tmp_path):
    for _, errors in finish(*TRAIN, str(tmp_path), "1", "SIGTERM", code=1):
        (step,) = re.findall(r"asked to end \(SIGTERM\); stopped at step (\d+)", errors)
        steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
        assert int(step) == max(steps) > 6


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_a_checkpoint_of_eight_devices_goes_on_with_four_and_with_one(tmp_path, axes):
    def run(folder, devices):
        mesh = distributed_run.make_mesh(jax.devices()[:devices], axes)
        own = {"tx": test_train.TX, "eval_every": 9, "out": folder}
        result, model = distributed_run.run(mesh=mesh, **own)
        assert len(model.up.kernel[...].sharding.device_set) == devices
        return result

    run(tmp_path / "eight", 8)
    wanted = losses(tmp_path / "eight")
    for devices in (4, 1):
        fewer = tmp_path / str(devices)
        shutil.copytree(tmp_path / "eight", fewer)
        shutil.rmtree(fewer / "checkpoints" / "00000009")
        assert run(fewer, devices).resumed_from == 6
        require_close(losses(fewer), wanted)


def test_a_checksum_is_that_of_the_numbers_wherever_they_are():
    random = np.random.default_rng(0)
    whole = {
        "float": random.normal(size=(8, 3)).astype(np.float32),
        "half": random.normal(size=(4, 16)).astype(jnp.bfloat16),
        "complex": (random.normal(size=(2, 8)) * (1 + 2j)).astype(np.complex64),
        "flags": random.normal(size=8) > 0,
        "count": np.int32(7),
    }
    specs = {"float": ("x",), "half": (None, ("x", "y")), "complex": (None, "y")}
    mesh = jax.make_mesh((4, 2), ("x", "y"))

    def place(mesh):
        return {
            name: jax.device_put(
                array,
                NamedSharding(mesh, PartitionSpec(*specs.get(name, ())))
                if mesh
                else jax.devices()[0],
            )
            for name, array in whole.items()
        }

    wanted = checkpoints.checksum(place(None))
    assert checkpoints.checksum(place(mesh)) == wanted
    for name, array in whole.items():
        for other in (array[::-1].copy(), -array) if array.ndim > 1 else (~array,):
            changed = {**place(mesh), name: jax.device_put(other)}
            assert checkpoints.checksum(changed) != wanted


def test_a_mesh_is_read_from_text():
    where = placement.on_mesh("fsdp=4,tp=2")
    assert dict(where.mesh.shape) == {"fsdp": 4, "tp": 2}
    assert where.batch_axes == ("fsdp",)
    assert placement.on_mesh("data=2,fsdp=4").batch_axes == ("data", "fsdp")

    def spec(*shape):
        return where.param_spec("", np.zeros(shape))

    assert spec(64, 128) == PartitionSpec("fsdp", "tp")
    assert spec(3, 64, 128) == PartitionSpec(None, "fsdp", "tp")
    assert spec(64, 65) == PartitionSpec("tp", None)
    assert spec(4, 2) == PartitionSpec(None, None)
    assert spec(4096) == PartitionSpec(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows=8", "each of data, fsdp, tp"),
        ("data=8,data=1", "at most once"),
        ("data", "as in 'fsdp=4,tp=2'"),
        ("data=0", "number of devices"),
        ("data=-8", "number of devices"),
        ("data=3", "for 3 devices, there are 8"),
        ("", "each of data, fsdp, tp"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        placement.on_mesh(text)


def test_a_number_of_processes_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(lab.LabError, match=r"JAX_NUM_PROCESSES must be .* got 'two'"):
        processes.start()


def test_one_process_agrees_with_itself():
    assert processes.decide(lambda x: (x, 1), 2) == (2, 1)
    assert processes.fault("bad") == "bad"
    assert processes.total(2**64 + 5) == 5
    assert (processes.count(), processes.first(), processes.speaker()) == (1, True, "")
    assert processes.leave(3) == 3


def command(folder, *more):
    chain = ("--chain", "muon+wsd@8", "--seeds", "1", "--eval-every", "4")
    where = ("--distributed", "--mesh", "fsdp=4,tp=2", "--out", str(folder))
    return (*COMMAND, "race", "--workload", "digits", *chain, *where, *more)


@pytest.mark.slow
def test_a_race_of_two_processes_is_that_of_one(tmp_path, capsys):
    (said, errors), (quiet, _) = finish(*command(tmp_path / "two"))
    assert "run 1 of 1" in errors and "Written" in said
    assert "Written" not in quiet
    again, _ = finish(*command(tmp_path / "two"))
    assert "Written" in again[0]
    flags = command(tmp_path / "one")[3:]
    assert cli.main(["race", *(flag for flag in flags if flag != "--distributed")]) == 0
    two, one = (
        json.loads((tmp_path / name / "race.json").read_text())["chains"][0]
        for name in ("two", "one")
    )
    assert len(one["curve"]) == 2
    np.testing.assert_allclose(two["curve"], one["curve"], rtol=CLOSE)


@pytest.mark.slow
def test_what_cannot_work_is_refused_by_all_processes(tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    other = {"second": ("--seeds", "2")}
    for differ, message in (
        (other, "process 1: has another command than process 0: optlab race"),
        ({}, "process 1: does not see the folder"),
    ):
        for _, errors in finish(*command("run"), code=1, folders=folders, **differ):
            assert message in errors
            assert "Traceback" not in errors


@pytest.mark.slow
def test_the_example_of_two_processes_learns(tmp_path):
    done = subprocess.run(
        ["sh", str(ROOT / "examples" / "multi_process.sh"), "--steps", "60"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "devices 8 processes 2" in done.stdout
    assert done.stdout.count("test accuracy") == 1
