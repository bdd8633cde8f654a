"""Checkpoints: every bit comes back, and no fault loses an older one."""

import contextlib
import dataclasses
import os
import pathlib
import resource
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import lab
from optlab.lab import checkpoints, train
from tests.lab import test_train, toy

OWN = {"run": "this one"}


def make(folder, keep=3):
    return checkpoints.Checkpoints(folder / "checkpoints", OWN, keep)


def state(step):
    return {"w": jnp.full((3, 4), step, jnp.float32), "count": jnp.array(step)}


def saved(folder, steps=(1, 2, 3)):
    found = make(folder)
    for step in steps:
        found.save(step, state(step))
    return found


def test_every_bit_comes_back(tmp_path):
    bits = np.array([0x7FC00001, 0xFF800000, 1, 0x80000000], np.uint32)
    tree = {
        "odd floats": jnp.asarray(bits.view(np.float32)),
        "half": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "float16": jnp.ones((2, 1), jnp.float16),
        "integers": [jnp.array(-7), jnp.arange(3, dtype=jnp.uint8)],
        "flag": jnp.array(True),
        "empty": jnp.zeros((0, 3)),
        "key": jax.random.key(5),
        "keys": jax.random.split(jax.random.key(6, impl="rbg"), 2),
    }
    make(tmp_path).save(7, tree)
    step, back = make(tmp_path).restore(jax.tree.map(jnp.zeros_like, tree))
    assert step == 7
    assert jax.tree.structure(back) == jax.tree.structure(tree)

    def raw(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(leaf) in ("fry", "rbg", "threefry2x32")
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    leaves = (list(map(raw, jax.tree.leaves(t))) for t in (tree, back))
    assert toy.same_bits(*leaves)


def test_no_checkpoint_is_no_state(tmp_path):
    assert make(tmp_path).restore(state(0)) is None
    assert make(tmp_path).describe() == "none"


def truncate(path):
    largest = max(
        (p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    os.truncate(largest, largest.stat().st_size // 2)


def remove_metadata(path):
    (path / "_CHECKPOINT_METADATA").unlink()


def cut_metadata(path):
    os.truncate(path / "_CHECKPOINT_METADATA", 40)


def remove_all(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.unlink()


def flip_a_bit(path):
    """Writes the checkpoint anew with one bit of a parameter changed."""
    other = checkpoints.Checkpoints(path.parent.parent / "other", OWN, 9)
    changed = state(3)
    changed["w"] = changed["w"].at[1, 1].set(np.nextafter(np.float32(3), 4))
    other.save(3, changed)
    data = other._folder / path.name / "ocdbt.process_0"
    checkpoints.shutil.rmtree(path / "ocdbt.process_0")
    for name in ("d", "manifest.ocdbt"):
        target = path / name
        if target.is_dir():
            checkpoints.shutil.rmtree(target)
        source = other._folder / path.name / name
        (checkpoints.shutil.copytree if source.is_dir() else checkpoints.shutil.copy)(
            source, target
        )
    checkpoints.shutil.copytree(data, path / "ocdbt.process_0")


DAMAGES = [truncate, remove_metadata, cut_metadata, remove_all, flip_a_bit]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path, damage, capfd
):
    newest = saved(tmp_path)._folder / "00000003"
    damage(newest)
    step, back = make(tmp_path).restore(state(0))
    assert step == 2
    np.testing.assert_array_equal(back["w"], state(2)["w"])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert "00000003 is damaged" in lines[0] and "from step 2" in lines[0]
    assert newest.with_suffix(".damaged").is_dir()
    # It is told once.
    make(tmp_path).restore(state(0))
    assert capfd.readouterr().err == ""


def test_if_all_are_damaged_the_run_begins_again(tmp_path, capfd):
    found = saved(tmp_path, steps=(1, 2))
    for step in (1, 2):
        truncate(found._folder / f"{step:08d}")
    assert make(tmp_path).restore(state(0)) is None
    lines = capfd.readouterr().err.splitlines()
    assert ["from step 1" in lines[0], "the beginning" in lines[1]] == [True, True]


def test_a_run_goes_on_from_before_the_damage_to_the_same_end(tmp_path, capfd):
    whole, arrays = test_train.run()
    with pytest.raises(test_train.Interrupted):
        test_train.run(test_train.interrupt_at(10), out=tmp_path)
    truncate(tmp_path / "checkpoints" / "00000008")
    result, same = test_train.run(out=tmp_path)
    assert result.resumed_from == 4
    assert "00000008 is damaged" in capfd.readouterr().err
    assert toy.same_bits(arrays, same)
    assert result.train_losses == whole.train_losses


def test_what_a_kill_left_half_written_is_cleared(tmp_path):
    found = saved(tmp_path)
    half = found._folder / "00000004.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "part").write_text("half")
    found = make(tmp_path)
    assert found.restore(state(0))[0] == 3
    assert not half.exists()
    found.save(4, state(4))
    assert make(tmp_path).restore(state(0))[0] == 4


def test_another_runs_checkpoint_is_refused_and_kept(tmp_path):
    saved(tmp_path)
    other = checkpoints.Checkpoints(tmp_path / "checkpoints", {"run": "another"}, 3)
    with pytest.raises(lab.LabError, match="'this one' there, 'another' here"):
        other.restore(state(0))
    assert make(tmp_path).steps() == [1, 2, 3]


@contextlib.contextmanager
def files_up_to(size):
    """Makes the system refuse larger files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def reachable():
    """A folder that all users may look into, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        yield folder


@contextlib.contextmanager
def read_only(folder):
    """Takes the right to write away, from the superuser too."""
    user = os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_full_disk_ends_a_save_and_keeps_what_there_is(tmp_path, capfd):
    found = saved(tmp_path)
    with files_up_to(2**16):
        with pytest.raises(lab.LabError) as error:
            found.save(4, state(4))
    text = str(error.value)
    assert "cannot save the checkpoint of step 4: " in text
    assert "File too large" in text and "last good checkpoint: step 3" in text
    assert "\n" not in text and capfd.readouterr().err == ""
    assert sorted(os.listdir(found._folder)) == ["00000001", "00000002", "00000003"]
    found.save(4, state(4))
    step, back = make(tmp_path).restore(state(0))
    assert (step, int(back["count"])) == (4, 4)


def test_a_disk_that_fills_during_a_save_keeps_what_there_is(tmp_path, monkeypatch):
    found = saved(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
    with files_up_to(2**7):
        with pytest.raises(lab.LabError, match=r"step 4: .*\n?.* step 3 in"):
            found.save(4, state(4))
    assert sorted(os.listdir(found._folder)) == ["00000001", "00000002", "00000003"]
    assert make(tmp_path).restore(state(0))[0] == 3


def test_a_full_disk_stops_a_run_that_ends_the_same_later(tmp_path):
    whole, arrays = test_train.run()
    full = contextlib.ExitStack()

    def act(step, batch):
        if step == 6:
            full.enter_context(files_up_to(2**15))

    with full, pytest.raises(lab.LabError, match=r"checkpoint of step 8: .*too large"):
        test_train.run(test_train.with_batch(act), out=tmp_path)
    result, same = test_train.run(out=tmp_path)
    assert result.resumed_from == 4
    assert toy.same_bits(arrays, same)
    assert result.train_losses == whole.train_losses


def test_a_log_that_cannot_grow_stops_the_run(tmp_path):
    full = contextlib.ExitStack()

    def act(step, batch):
        if step == 6:
            full.enter_context(files_up_to(700))

    with full, pytest.raises(lab.LabError, match=r"metrics.jsonl: File too large"):
        test_train.run(test_train.with_batch(act), out=tmp_path)
    assert test_train.run(out=tmp_path)[0].resumed_from == 4


def test_a_read_only_folder_is_refused_at_once(reachable):
    with read_only(reachable):
        with pytest.raises(lab.LabError, match=r"cannot write to .*Permission denied"):
            test_train.run(out=reachable / "out")


def test_a_folder_that_becomes_read_only_keeps_its_checkpoints(reachable):
    found = saved(reachable)
    with read_only(found._folder):
        with pytest.raises(lab.LabError, match=r"step 4: .*denied.* step 3 in"):
            found.save(4, state(4))
    assert make(reachable).restore(state(0))[0] == 3


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(lab.LabError, match=r"cannot write to .*exists"):
        test_train.run(out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "not a folder"


def test_a_state_with_other_shapes_has_another_fingerprint():
    one = checkpoints.fingerprint(state(1), seed=0)
    assert one == checkpoints.fingerprint(state(2), seed=0)
    assert one != checkpoints.fingerprint(state(1), seed=1)
    wider = {**state(1), "w": jnp.zeros((3, 5))}
    renamed = {"v": state(1)["w"], "count": state(1)["count"]}
    half = {**state(1), "w": jnp.zeros((3, 4), jnp.bfloat16)}
    for other in (wider, renamed, half):
        assert checkpoints.fingerprint(other, seed=0) != one


def test_a_model_with_random_streams_goes_on_with_them(tmp_path):
    class Dropped(toy.Net):
        def __init__(self, *, rngs):
            super().__init__(rngs=rngs)
            self.dropout = train.nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.down(self.dropout(train.nnx.tanh(self.up(x))))

    def make_model(seed):
        return Dropped(rngs=train.nnx.Rngs(seed))

    def dropped(workload):
        return dataclasses.replace(workload, make_model=make_model)

    whole, arrays = test_train.run(dropped(toy.WORKLOAD))
    with pytest.raises(test_train.Interrupted):
        test_train.run(dropped(test_train.interrupt_at(9)), out=tmp_path)
    result, same = test_train.run(dropped(toy.WORKLOAD), out=tmp_path)
    assert result.resumed_from == 8
    assert result.train_losses == whole.train_losses
    assert toy.same_bits(arrays, same)
