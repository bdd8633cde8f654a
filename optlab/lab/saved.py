"""What a run has left in its folder: its workload, and its models at checkpoints."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from optlab import lab, trees
from optlab.lab import checkpoints, curves, runs, workloads

# Where the model is in the state of a run, a pair of model and optimizer.
MODEL = "0/"


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run that has ended, was cut off or goes on elsewhere; nothing is changed.

    Attributes:
      folder: The run's folder.
      workload: What it trains.
      chain: Label of its chain.
      seed: Its seed.
      steps: Steps of its checkpoints, in order, one or more.
    """

    folder: pathlib.Path
    workload: workloads.Workload
    chain: str
    seed: int
    steps: tuple[int, ...]

    def model(self, step: int) -> nnx.Module:
        """Reads the model of a checkpoint, whole, on the first device.

        Args:
          step: Step of a checkpoint.

        Raises:
          LabError: If the checkpoint is damaged or of another model.
        """
        path = self.folder.absolute() / "checkpoints" / f"{step:08d}"
        arrays = _arrays(path)
        graphdef, state = _split_model(self.workload, self.seed)

        def saved(place: tuple, leaf: jax.Array) -> jax.Array:
            name = MODEL + trees.path_string(place)
            if not leaf.size or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return leaf
            found = arrays.get(name)
            if found is None or found.shape != leaf.shape:
                shape = None if found is None else found.shape
                raise lab.LabError(
                    f"{path}: '{name}' is {shape}, but {self.workload.name} has"
                    f" {leaf.shape} there; the run is of another version of it"
                )
            return found

        return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(saved, state))

    def rates(self) -> dict[int, float]:
        """Reads the learning rate of each update from the log, by its step.

        Updates whose rate is not known are left out.
        """
        log = self.folder / "metrics.jsonl"
        if not log.is_file():
            return {}
        return {
            row["step"]: row["learning_rate"]
            for _, row in curves.log_rows(log)
            if row["kind"] == "train" and row.get("learning_rate") is not None
        }


def find(folder: str | os.PathLike) -> SavedRun:
    """Finds the run in a folder.

    Args:
      folder: The folder, as `optlab train --out` makes it.

    Returns:
      The run.

    Raises:
      LabError: If there is no run, it has no checkpoint, or its workload is none of
        the lab's.
    """
    path = pathlib.Path(folder)
    record = path / "fingerprint.json"
    if not path.is_dir():
        raise lab.LabError(f"{folder}: no such folder; RUN is the folder of a run")
    if not record.is_file():
        inside = sorted(path.glob("**/fingerprint.json"))[:3]
        named = ", ".join(str(found.parent) for found in inside)
        hint = f"; there are runs in {named}" if inside else ""
        raise lab.LabError(f"{folder}: no run, for there is no file {record}{hint}")
    own = runs.read_json(record)
    workload = _workload(folder, str(own.get("workload")))
    saved = checkpoints.Checkpoints(path / "checkpoints", own, keep=1)
    if not (steps := saved.steps()):
        raise lab.LabError(f"{folder}: the run has no checkpoint yet")
    chain, seed = str(own.get("chain", "")), int(own.get("seed", 0))
    return SavedRun(path, workload, chain, seed, tuple(steps))


@functools.lru_cache(maxsize=2)
def _split_model(workload: workloads.Workload, seed: int) -> tuple[Any, Any]:
    """Makes a model once for all checkpoints of a run."""
    return nnx.split(workload.make_model(seed))


def _workload(folder: str | os.PathLike, text: str) -> workloads.Workload:
    """Finds a workload by the name that tells it from every other, size included."""
    known = ", ".join(workloads.names())
    problem = lab.LabError(
        f"{folder}: the run's workload '{text}' is none of the lab's ({known}); probe"
        " it in Python, with optlab.probes"
    )
    for name in sorted(workloads.names(), key=len, reverse=True):
        rest = text.removeprefix(name)
        if rest == text or rest[:1] not in ("", "-"):
            continue
        try:
            found = workloads.get(name, size=rest[1:] or "default")
        except lab.LabError as error:
            raise problem from error
        if found.name == text:
            return found
    raise problem


def _arrays(path: pathlib.Path) -> checkpoints.Arrays:
    """Reads all arrays of a checkpoint, by their names, without knowing the optimizer.

    They are placed whole on the first device, wherever they were.
    """
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        facts = reader.metadata(path)
        like = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=here)
            for name, array in (facts.item_metadata or {}).items()
        }
        arrays = reader.restore(path, args=ocp.args.StandardRestore(like))
        wanted = int(facts.custom_metadata["checksum"])
    # A damaged file can fail in any layer of the reader.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise lab.LabError(f"checkpoint {path} cannot be read: {reason}") from error
    if checkpoints.checksum(arrays) != wanted:
        raise lab.LabError(f"checkpoint {path} is damaged: its checksum does not match")
    return arrays
