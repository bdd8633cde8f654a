"""One run in a folder of its own, finished once and then read back."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import optax
from flax import nnx

from optlab import lab
from optlab.lab import (
    chains,
    checkpoints,
    files,
    processes,
    settings,
    train,
    workloads,
)

PACKAGES = ("optlab-jax", "jax", "jaxlib", "optax", "flax", "numpy")

# Steps between checkpoints, in all but the longest runs.
CHECKPOINT_EVERY = 100


def folder(chain: chains.Chain, seed: int, facts: Mapping[str, Any]) -> pathlib.Path:
    """Names a run's folder after everything that decides its numbers.

    Args:
      chain: The chain, explicit.
      seed: The run's seed.
      facts: What else decides the numbers, ready for JSON.

    Returns:
      A relative path, as in 'adamw+cosine-400-0b1c9d7e/seed-0'.
    """
    text = json.dumps([str(chain), dict(facts)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return pathlib.Path(f"{chain.name}-{chain.steps}-{digest}") / f"seed-{seed}"


@functools.cache
def fingerprint(workload: workloads.Workload) -> str:
    """Tells a workload from itself with another model or other data.

    Args:
      workload: The workload.

    Returns:
      Its name and a digest of its parameters' shapes and of its first batch.
    """
    model = nnx.eval_shape(lambda: workload.make_model(0))
    digest = hashlib.sha256(checkpoints.shapes(nnx.state(model)).encode())
    for name, array in sorted(workload.batch(0, 0).items()):
        digest.update(name.encode() + array.tobytes())
    return f"{workload.name}-{digest.hexdigest()[:16]}"


def finish(
    workload: workloads.Workload,
    tx: optax.GradientTransformation,
    out: pathlib.Path,
    *,
    steps: int,
    **more: Any,
) -> dict[str, Any]:
    """Trains, goes on training, or reads back a run that is finished.

    Args:
      workload: The workload.
      tx: The optimizer.
      out: The run's folder; a `result.json` in it says that the run is finished.
      steps: Steps of the run.
      **more: Other arguments of `train.train`.

    Returns:
      The fields of `train.Result`, ready for JSON.

    Raises:
      LabError: If the run fails; its checkpoints are kept.
    """
    record = out / "result.json"
    if found := processes.decide(_read_if_there, record):
        return found
    more = {"checkpoint_every": max(CHECKPOINT_EVERY, steps // 20), **more}
    result = train.train(workload, tx, steps=steps, out=out, **more)
    numbers = {
        field.name: _for_json(getattr(result, field.name))
        for field in dataclasses.fields(result)
    }
    processes.decide(write_json, record, numbers)
    return numbers


def _read_if_there(record: pathlib.Path) -> dict[str, Any] | None:
    return read_json(record) if record.exists() else None


def check_workload(name: str) -> None:
    """Checks the name of a workload.

    Args:
      name: The name.

    Raises:
      ValueError: If there is no such workload; the message has the nearest names.
    """
    if name not in workloads.names():
        raise ValueError(settings.unknown("workload", name, workloads.names()))


def make_folder(out: pathlib.Path) -> None:
    """Makes a folder and tries to write in it, before any time is spent on a run.

    Args:
      out: The folder.

    Raises:
      LabError: If it cannot be made or written in.
    """
    processes.decide(_make_folder, out)


def _make_folder(out: pathlib.Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"optlab")
            probe.flush()
    except OSError as error:
        reason = error.strerror or error
        raise lab.LabError(f"cannot write in folder {out}: {reason}") from error


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file as a whole or not at all.

    Args:
      path: The file.
      value: What it shall hold; not a number (NaN) is refused.
    """
    text = json.dumps(value, indent=1, allow_nan=False)
    # Rows of numbers, such as a point of a curve, on one line each.
    rows = re.compile(r'\[\n\s*([^"\[\]{}]*?)\n\s*\]')
    text = rows.sub(lambda row: f"[{' '.join(row[1].split())}]", text)
    files.write_text(path, text + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that `write_json` wrote.

    Args:
      path: The file.

    Returns:
      What it holds.

    Raises:
      LabError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise lab.LabError(f"{path} is damaged ({error}); delete it") from error


def versions() -> dict[str, str]:
    """Finds the versions that numbers depend on.

    Returns:
      The version of Python and of each package.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Describes the machine, as far as it bears on times.

    Returns:
      System, number of processors, and kind and number of devices.
    """
    devices = jax.devices()
    return {
        "system": platform.platform(),
        "processors": os.cpu_count() or 1,
        "device": devices[0].device_kind,
        "devices": len(devices),
    }


def _for_json(value: Any) -> Any:
    """JSON knows neither NaN nor infinity; they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_for_json(item) for item in value]
    return value
