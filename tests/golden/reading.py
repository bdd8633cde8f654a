"""Reads reference cases: NAME/CASE.npz with the numbers, NAME/CASE.json beside it."""

import dataclasses
import json
import pathlib
import zipfile
from typing import Any

import numpy as np

CASES = pathlib.Path(__file__).parent / "cases"


class FaultyCaseError(Exception):
    """The files of a case are missing, unreadable or contradict each other."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded run of somebody else's code.

    Attributes:
      name: NAME/CASE.
      meta: What the json says.
      init: Parameters before the first step, by name.
      grads: Gradients by name, each with a leading axis of steps.
      params: Parameters after each step, by name, with the same leading axis.
      arrays: All other arrays, by their full key: curves, inputs and images, extras.
    """

    name: str
    meta: dict[str, Any]
    init: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    @property
    def folder(self) -> str:
        """NAME: the optimizer, or the package that a schedule comes from."""
        return self.name.partition("/")[0]

    @property
    def steps(self) -> int:
        """Number of recorded steps."""
        return min((len(x) for x in self.params.values()), default=0)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the arrays whose key is 'prefix/name', by name."""
        head = f"{prefix}/"
        return {
            key.removeprefix(head): x
            for key, x in self.arrays.items()
            if key.startswith(head)
        }

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Everything that was in force: what was passed, else the class's default."""
        passed = self.meta.get("hyperparameters", {})
        return {**passed, **self.meta.get("resolved_hyperparameters", {})}


def stems(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns every case below a folder, half cases too: paths without the suffix."""
    # A json right in the root, outside every NAME, is a list or a note, not a case.
    notes = (p for p in root.rglob("*.json") if p.parent != root)
    return sorted({p.with_suffix("") for p in (*root.rglob("*.npz"), *notes)})


def name(stem: pathlib.Path) -> str:
    """Returns NAME/CASE of a path without the suffix."""
    return f"{stem.parent.name}/{stem.name}"


def read(stem: pathlib.Path) -> Case:
    """Reads one case and checks that its parts agree.

    Args:
      stem: Path of the case without a suffix.

    Returns:
      The case.

    Raises:
      FaultyCaseError: A file is missing or unreadable, or arrays and json disagree.
    """
    meta, flat = _read_json(stem), _read_npz(stem)
    groups: dict[str, dict[str, np.ndarray]] = {"init": {}, "grads": {}, "params": {}}
    arrays = {}
    for key, value in flat.items():
        head, _, tail = key.partition("/")
        if head in groups and tail:
            groups[head][tail] = value
        else:
            arrays[key] = value
    case = Case(name(stem), meta, **groups, arrays=arrays)
    _check_declared(case, flat)
    _check_trajectory(case)
    return case


def _read_json(stem: pathlib.Path) -> dict[str, Any]:
    # Case names may contain dots (eps1e-8.5), so the suffix is appended, not swapped.
    path = stem.parent / f"{stem.name}.json"
    if not path.exists():
        raise FaultyCaseError(
            f"{name(stem)}: {path} is missing; a case is npz and json"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise FaultyCaseError(f"{name(stem)}: {path} is not json: {error}") from error


def _read_npz(stem: pathlib.Path) -> dict[str, np.ndarray]:
    path = stem.parent / f"{stem.name}.npz"
    if not path.exists():
        raise FaultyCaseError(
            f"{name(stem)}: {path} is missing; a case is npz and json"
        )
    try:
        # Opened here, because np.load leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file) as stored:
            return {key: stored[key] for key in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FaultyCaseError(f"{name(stem)}: cannot read {path}: {error}") from error


def _check_declared(case: Case, flat: dict[str, np.ndarray]) -> None:
    declared = case.meta.get("arrays")
    if declared is None:
        return
    if odd := sorted(set(declared) ^ set(flat)):
        raise FaultyCaseError(f"{case.name}: only npz or only json has {odd}")
    for key, value in flat.items():
        said = declared[key]
        if [*value.shape] != said["shape"] or str(value.dtype) != said["dtype"]:
            raise FaultyCaseError(
                f"{case.name}: array '{key}' is {value.dtype} {value.shape} in the "
                f"npz, but {said['dtype']} {tuple(said['shape'])} in the json"
            )


def _check_trajectory(case: Case) -> None:
    if not set(case.init) == set(case.grads) == set(case.params):
        raise FaultyCaseError(
            f"{case.name}: init has {sorted(case.init)}, grads has "
            f"{sorted(case.grads)}, params has {sorted(case.params)}"
        )
    for key, start in case.init.items():
        shape = (case.meta.get("steps", case.steps), *start.shape)
        for head, group in (("grads", case.grads), ("params", case.params)):
            if group[key].shape != shape:
                raise FaultyCaseError(
                    f"{case.name}: '{head}/{key}' has shape {group[key].shape}, but "
                    f"init and the number of steps ask for {shape}"
                )
