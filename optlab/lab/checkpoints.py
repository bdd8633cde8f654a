"""Checkpoints of a run, safe against kills, full disks and damaged files.

A run's folder holds `fingerprint.json`, which says what run it is, `metrics.jsonl`, and
a folder of checkpoints named after their steps. Orbax writes a checkpoint under another
name and renames it at the end, so a folder with a plain number is a whole checkpoint.

If a run has several processes, all of them write and read their shares of a checkpoint,
on storage that all can see; the first one does everything else. A checkpoint of one
mesh can be read on another one.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from optlab import lab, trees
from optlab.lab import files, placement, processes, terminal

Fingerprint = dict[str, Any]
Arrays = dict[str, jax.Array]


def fingerprint(state: Any, **facts: Any) -> Fingerprint:
    """Says what run a folder belongs to: some facts, and the shape of its state.

    Args:
      state: Tree of arrays.
      **facts: Whatever else decides the run's numbers; values that JSON knows.
    """
    digest = hashlib.sha256(shapes(state).encode()).hexdigest()[:16]
    return {**facts, "state": digest}


def shapes(state: Any) -> str:
    """Writes the layout of a state: a line with path, shape and dtype for each leaf.

    Args:
      state: Tree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      The lines.
    """
    return "\n".join(
        f"{trees.path_string(path)} {leaf.shape} {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    )


def checksum(arrays: Arrays) -> int:
    """Adds up all bits, each number times an odd weight of its own.

    The sum is the same however the arrays are divided over devices and processes.

    Args:
      arrays: Arrays by name, none of them keys.
    """
    return processes.total(
        sum(
            (2 * index + 1) * _sum_of_bits(shard, array.shape)
            for index, (_, array) in enumerate(sorted(arrays.items()))
            for shard in array.addressable_shards
            if shard.replica_id == 0
        )
    )


@contextlib.contextmanager
def claim(out: pathlib.Path, own: Fingerprint, *, resume: bool) -> Iterator[None]:
    """Makes a folder this run's own while the context lasts.

    Args:
      out: The folder; made if it is not there.
      own: The run's fingerprint.
      resume: False to refuse a folder that holds a run, be it the same.

    Raises:
      LabError: If the folder cannot be written, holds another run, or another process
        works on it. Nothing in it changes then.
    """
    with contextlib.ExitStack() as stack:
        processes.decide(lambda: stack.enter_context(_locked(out, own, resume)))
        if missing := processes.fault(_unlike(out, own)):
            raise lab.LabError(missing)
        yield


@contextlib.contextmanager
def _locked(out: pathlib.Path, own: Fingerprint, resume: bool) -> Iterator[None]:
    record = out / "fingerprint.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")
    except OSError as error:
        raise lab.LabError(f"cannot write to {out}: {error.strerror}") from error
    with lock:
        try:
            # The system lets go of it when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise lab.LabError(f"another process is training in {out}") from None
        if record.exists():
            _compare(out, json.loads(record.read_text()), own)
            if not resume:
                raise lab.LabError(f"{out} holds this run already, and resume is off")
        elif (out / "metrics.jsonl").exists() or (out / "checkpoints").exists():
            raise lab.LabError(f"{out} holds a run that has lost its fingerprint.json")
        else:
            try:
                files.write_text(record, json.dumps(own, indent=2) + "\n")
            except OSError as error:
                message = f"cannot write to {out}: {error.strerror}"
                raise lab.LabError(message) from error
        yield


def _unlike(out: pathlib.Path, own: Fingerprint) -> str:
    """Says why this process cannot be one of those that train in a folder."""
    if processes.first():
        return ""
    try:
        _compare(out, json.loads((out / "fingerprint.json").read_text()), own)
    except OSError:
        return f"does not see the folder {out} of process 0; all must share it"
    except lab.LabError as error:
        return f"was started with another command; {error}"
    return ""


def _compare(out: pathlib.Path, found: Fingerprint, own: Fingerprint) -> None:
    differences = [
        f"{key} {found.get(key)!r} there, {own.get(key)!r} here"
        for key in {**own, **found}
        if found.get(key) != own.get(key)
    ]
    if differences:
        raise lab.LabError(
            f"{out} holds another run ({'; '.join(differences)}); choose another folder"
        )


class Checkpoints:
    """The checkpoints of one run, the last few kept.

    Args:
      folder: Where they are; made with the first one.
      own: The run's fingerprint, kept in each of them.
      keep: How many to keep.

    Attributes:
      hold: Step of a checkpoint to keep beside them, or None.
    """

    hold: int | None = None

    def __init__(self, folder: pathlib.Path, own: Fingerprint, keep: int):
        self._folder = folder.absolute()
        self._own = own
        self._keep = keep
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._reader = _reader()

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are there, in order."""
        if not self._folder.exists():
            return []
        names = (entry.name for entry in self._folder.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def describe(self) -> str:
        """Says, for an error message, what one can go back to."""
        try:
            steps = self.steps()
        except OSError as error:
            return f"unknown, for {self._folder} cannot be read: {error.strerror}"
        return f"step {steps[-1]} in {self._folder}" if steps else "none"

    def save(self, step: int, state: Any) -> None:
        """Saves a state; when this returns, a kill cannot undo it.

        Args:
          step: Updates done.
          state: Tree of arrays.

        Raises:
          LabError: If it cannot be written. The earlier checkpoints are kept.
        """
        arrays = _named(state)
        facts = {
            "fingerprint": self._own,
            "step": step,
            "checksum": str(checksum(arrays)),
        }
        size = sum(array.nbytes for array in arrays.values())
        processes.decide(self._guarded, step, self._make_room, size)
        self._guarded(step, self._write, self._path(step), arrays, facts)
        processes.decide(self._guarded, step, self._forget)

    def _guarded(self, step: int, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        # Orbax hands on errors of its storage layer, which are of many kinds.
        except Exception as error:
            with contextlib.suppress(OSError):
                self._remove_unfinished()
            reason = str(error).splitlines()[0]
            raise lab.LabError(
                f"cannot save the checkpoint of step {step}: {reason}; last good"
                f" checkpoint: {self.describe()}"
            ) from error

    def _make_room(self, size: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        _reserve(self._folder, size)

    def _write(self, path: pathlib.Path, arrays: Arrays, facts: Any) -> None:
        self._orbax.save(
            path, args=ocp.args.StandardSave(arrays), custom_metadata=facts
        )

    def _forget(self) -> None:
        for old in self.steps()[: -self._keep]:
            if old != self.hold:
                shutil.rmtree(self._path(old))

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Reads the newest checkpoint that is whole.

        Damaged ones are reported and set aside under another name.

        Args:
          like: Tree with the structure, shapes, dtypes and placement of the state.

        Returns:
          Step and state, equal to what was saved in every bit; or None if there is no
          checkpoint.

        Raises:
          LabError: If a checkpoint is another run's.
        """
        processes.decide(self._remove_unfinished)
        while steps := processes.decide(self.steps):
            facts, arrays, reason = {}, {}, ""
            try:
                facts, arrays = self._read(steps[-1], _named(like))
            # A damaged file can fail in any layer of the reader.
            except Exception as error:
                reason = str(error) or type(error).__name__
            reason = processes.fault(reason)
            if not reason and checksum(arrays) != int(facts["checksum"]):
                reason = "its checksum does not match"
            if reason:
                processes.decide(self._set_aside, steps, reason)
                continue
            _compare(self._folder, facts["fingerprint"], self._own)
            return steps[-1], _unnamed(arrays, like)
        return None

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps than this one.

        Raises:
          LabError: If one cannot be removed.
        """
        processes.decide(self._remove_after, step)

    def _remove_after(self, step: int) -> None:
        for later in reversed(self.steps()):
            if later <= step:
                break
            try:
                shutil.rmtree(self._path(later))
            except OSError as error:
                raise lab.LabError(
                    f"cannot remove checkpoint {self._path(later)}: {error.strerror}"
                ) from error

    def _read(self, step: int, like: Arrays) -> tuple[Any, Arrays]:
        path = self._path(step)
        facts = self._reader.metadata(path).custom_metadata
        int(facts["checksum"])  # Fails here if it is not there.
        return facts, self._reader.restore(path, args=ocp.args.StandardRestore(like))

    def _path(self, step: int) -> pathlib.Path:
        return self._folder / f"{step:08d}"

    def _set_aside(self, steps: list[int], reason: str) -> None:
        path = self._path(steps[-1])
        aside = path.with_suffix(".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        before = f"step {steps[-2]}" if steps[1:] else "the beginning"
        terminal.report(
            f"checkpoint {path} is damaged ({reason.splitlines()[0][:200]}); it is now"
            f" {aside.name}, and the run goes on from {before}"
        )

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob("*-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def _reserve(folder: pathlib.Path, size: int) -> None:
    """Raises OSError unless the disk takes a file of this size.

    Orbax would find out as well, but writes tracebacks from several threads while it
    does.
    """
    path = folder / ".reserve"
    try:
        with open(path, "wb") as file:
            # Room for Orbax's own files on top.
            os.posix_fallocate(file.fileno(), 0, size + 2**18)
    finally:
        path.unlink(missing_ok=True)


def _reader() -> ocp.Checkpointer:
    """Makes what reads a process' share, without waiting for other processes.

    One of them may find a damaged file and not come to where the others wait.
    """
    alone = ocp.options.MultiprocessingOptions()
    if processes.count() > 1:
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index,
            active_processes={index},
            barrier_sync_key_prefix=f"process_{index}",
        )
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        multiprocessing_options=alone,
    )


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _named(state: Any) -> Arrays:
    """Names arrays by their paths; leaves out empty ones, which Orbax refuses."""
    return {
        trees.path_string(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.size
    }


def _unnamed(arrays: Arrays, like: Any) -> Any:
    def place(path: Any, leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return leaf
        array = arrays[trees.path_string(path)]
        if not _is_key(leaf):
            return array
        keys = jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return placement.put(keys, leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, like)


def _sum_of_bits(shard: jax.Shard, shape: tuple[int, ...]) -> int:
    position = np.zeros((), np.uint64)
    for length, part in zip(shape, shard.index, strict=True):
        position = (
            position[..., None] * length + np.arange(length, dtype=np.uint64)[part]
        )
    bits = np.ascontiguousarray(shard.data)[..., None]
    bits = bits.view(f"u{min(8, bits.itemsize)}")  # A complex number is two.
    weights = 2 * position[..., None] + np.uint64(1)
    return int((bits * weights).sum(dtype=np.uint64))
