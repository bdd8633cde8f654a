"""`optlab probe`: from a run's folder to numbers and pictures, which change nothing."""

import hashlib
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from optlab import lab
from optlab.lab import cli, probing, saved

QUICK = ["--batches", "4", "--lanczos-steps", "12", "--draws", "2", "--top", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the smallest net, with two checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "short"
    command = "train --workload digits --size tiny --chain adamw+linear@8"
    more = f"--checkpoint-every 4 --eval-every 8 --out {out}"
    assert cli.main([*command.split(), *more.split()]) == 0
    return out


def digests(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def probe(run, *names):
    """Returns the numbers of some probes, and the names of the files that are new."""
    before = digests(run)
    assert cli.main(["probe", str(run), "--what", ",".join(names), *QUICK]) == 0
    after = digests(run)
    assert all(after[path] == digest for path, digest in before.items())
    numbers = json.loads((run / "probe.json").read_text())
    assert list(numbers) == ["command", "versions", *names]
    for name in names:
        with Image.open(run / f"probe_{name}.png") as image:
            assert image.width > 1000 and len(image.convert("RGB").getcolors(2**24)) > 9
    return numbers, {path.name for path in after.keys() - before.keys()}


def dense(run, batches):
    """Returns the flat parameters at the end, and their loss on some batches."""
    prober = probing.Prober(saved.find(run), probing.Settings(batches=batches))
    loss, params = prober._loss_at(8)
    flat, back = jax.flatten_util.ravel_pytree(params)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prober._stacked())
    return flat, lambda w: loss(back(w), rows)


def test_the_command_measures_draws_and_changes_nothing(run, tmp_path):
    copy = pathlib.Path(shutil.copytree(run, tmp_path / "copy"))
    numbers, new = probe(copy, "noise")
    assert new == {"probe.json", "probe_noise.png"}
    # Of 32 parts of one example each, every one against all of them.
    found = numbers["noise"]
    assert found["sizes"] == [1, 2, 4, 8, 16, 32] and found["batch"] == 8
    flat, loss = dense(run, batches=4)
    gradient = jax.jit(jax.grad(loss))(flat)
    np.testing.assert_allclose(found["sq_norms"][-1], np.sum(gradient**2), rtol=1e-4)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_dense_hessian(run, tmp_path):
    copy = pathlib.Path(shutil.copytree(run, tmp_path / "copy"))
    numbers, new = probe(copy, "spectrum", "sharpness", "examples")
    assert new >= {"probe_spectrum.png", "probe_sharpness.png", "probe_examples.png"}
    flat, loss = dense(run, batches=4)
    values = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(loss))(flat)))
    found, rows = numbers["spectrum"], numbers["sharpness"]
    np.testing.assert_allclose(found["values"][0], values[-1], rtol=1e-2)
    assert found["step"] == 8
    for trace, error in (found["trace"], rows[1]["trace"]):
        assert abs(trace - values.sum()) < 4 * error
    assert [row["step"] for row in rows] == [4, 8]
    np.testing.assert_allclose(rows[1]["sharpness"], values[-1], rtol=1e-2)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    rates = {row["step"]: row["learning_rate"] for row in log if row["kind"] == "train"}
    for row in rows:
        np.testing.assert_allclose(row["edge"], 2 / rates[row["step"] - 1], rtol=1e-6)
    examples = numbers["examples"]
    np.testing.assert_allclose(np.mean(examples["after"]), loss(flat), 1e-4)
    changes = np.subtract(examples["after"], examples["before"])
    assert examples["risen"] == np.argsort(changes)[::-1][:3].tolist()


def test_the_model_is_the_one_that_was_saved(run):
    found = saved.find(run)
    assert (found.workload.name, found.seed, found.steps) == ("digits-tiny", 0, (4, 8))
    first, last = (nnx.state(found.model(step), nnx.Param) for step in found.steps)
    fresh = nnx.state(found.workload.make_model(0), nnx.Param)
    assert jax.tree.structure(first) == jax.tree.structure(fresh)
    moves = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), first, last)
    assert all(move > 0 for move in jax.tree.leaves(moves))


def said(capsys, *argv):
    code = cli.main(["probe", *map(str, argv)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return code, lines[0]


def test_what_cannot_be_measured_is_named(run, tmp_path, capsys):
    what = said(capsys, run, "--what", "spectrum,nois")
    assert what[0] == 2 and "unknown probe 'nois'; did you mean 'noise'?" in what[1]
    nowhere = said(capsys, tmp_path / "x")
    assert (
        nowhere[0] == 1 and "no such folder; RUN is the folder of a run" in nowhere[1]
    )
    assert "no run, for there is no file" in said(capsys, tmp_path)[1]
    above = said(capsys, run.parent)[1]
    assert f"there are runs in {run}" in above
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "fingerprint.json", bare)
    assert "the run has no checkpoint yet" in said(capsys, bare)[1]


@pytest.mark.parametrize("name", ["toy", "digits-huge", "digitsx", "digits-vit-small"])
def test_a_workload_that_is_not_the_labs_is_named(name, tmp_path, run):
    own = json.loads((run / "fingerprint.json").read_text()) | {"workload": name}
    (tmp_path / "fingerprint.json").write_text(json.dumps(own))
    with pytest.raises(lab.LabError, match=f"workload '{name}' is none of the lab's"):
        saved.find(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"), [("digits-vit-tiny", "digits-vit-tiny"), ("digits", "digits")]
)
def test_a_workload_is_found_by_its_name_and_size(name, found, tmp_path, run):
    own = json.loads((run / "fingerprint.json").read_text()) | {"workload": name}
    (tmp_path / "fingerprint.json").write_text(json.dumps(own))
    (tmp_path / "checkpoints" / "00000003").mkdir(parents=True)
    assert saved.find(tmp_path).workload.name == found


def test_a_damaged_checkpoint_and_another_model_are_named(run, tmp_path):
    copy = pathlib.Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "checkpoints" / "00000004" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(lab.LabError, match="00000004 cannot be read"):
        saved.find(copy).model(4)
    own = json.loads((run / "fingerprint.json").read_text())
    (copy / "fingerprint.json").write_text(json.dumps(own | {"workload": "digits"}))
    with pytest.raises(lab.LabError, match="the run is of another version of it"):
        saved.find(copy).model(8)
    data = sorted((copy / "checkpoints" / "00000008").rglob("*"), key=size_of)[-1]
    os.truncate(data, size_of(data) // 2)
    with pytest.raises(lab.LabError, match="00000008 cannot be read"):
        saved.find(copy).model(8)


def size_of(path):
    return path.stat().st_size if path.is_file() else 0


def test_one_checkpoint_has_no_changes_of_examples(run, tmp_path):
    copy = pathlib.Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / "00000004")
    prober = probing.Prober(saved.find(copy), probing.Settings(batches=1))
    with pytest.raises(lab.LabError, match="there is one, of step 8"):
        prober.examples()
