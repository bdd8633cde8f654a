"""Where parameters live: one mesh, and the mesh axes that cut each of them."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from optlab import trees

# The mesh axes that cut each axis of an array.
Cuts = tuple[tuple[str, ...], ...]
Path = tuple[Any, ...]


class Parameter(NamedTuple):
    """One parameter: its name, its shape, and how it is cut."""

    name: str
    shape: tuple[int, ...]
    cuts: Cuts


class Parameters(NamedTuple):
    """All parameters of a model, on a mesh, or on one device if that is None."""

    mesh: Mesh | AbstractMesh | None
    device: Any
    by_path: dict[Path, Parameter]

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The names of the mesh axes with their sizes."""
        return {} if self.mesh is None else dict(self.mesh.shape)

    def further(self, axis: str) -> "Parameters":
        """Returns them as if each were cut over one more mesh axis, where it can be."""
        sizes = self.axis_sizes
        return self._replace(
            by_path={
                path: known._replace(
                    cuts=cut_further(known.shape, known.cuts, axis, sizes)
                )
                for path, known in self.by_path.items()
            }
        )

    @property
    def devices(self) -> set[Any]:
        """All devices; an abstract mesh has none."""
        if self.mesh is None:
            return {self.device}
        return set(self.mesh.devices.flat) if isinstance(self.mesh, Mesh) else set()

    def sharding(self, cuts: Cuts, memory_kind: str | None = None) -> Any:
        """Returns the sharding of an array on the same devices."""
        if self.mesh is None:
            return SingleDeviceSharding(self.device, memory_kind=memory_kind)
        return NamedSharding(self.mesh, spec_of(cuts), memory_kind=memory_kind)

    def shardings(self, tree: Any) -> Any:
        """Returns the shardings of the parameters as a tree like that of them."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: self.sharding(self.by_path[path].cuts), tree
        )


def cuts_of(spec: PartitionSpec, ndim: int) -> Cuts:
    """Writes a spec with one tuple of mesh axes for each axis of an array."""
    cuts = [tuple(jax.tree.leaves([entry])) for entry in spec]
    return (*cuts, *[()] * (ndim - len(cuts)))


@functools.cache
def spec_of(cuts: Cuts) -> PartitionSpec:
    """Writes cuts as a spec, without the uncut axes at its end."""
    entries = [cut[0] if len(cut) == 1 else cut or None for cut in cuts]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def cut_further(
    shape: tuple[int, ...], cuts: Cuts, axis: str, sizes: dict[str, int]
) -> Cuts:
    """Cuts an array over a mesh axis too, unless that cuts it already.

    The first axis that divides is cut, and of those one that is whole if there is one:
    cutting an axis twice makes smaller pieces of what is in pieces.
    """
    able = [
        i
        for i, (size, cut) in enumerate(zip(shape, cuts, strict=True))
        if size % math.prod(sizes[name] for name in (*cut, axis)) == 0
    ]
    if not able or 0 in shape or any(axis in cut for cut in cuts):
        return cuts
    i = min(able, key=lambda i: bool(cuts[i]))
    return (*cuts[:i], (*cuts[i], axis), *cuts[i + 1 :])


def read(who: str, params: Any, shardings: Any = None) -> Parameters:
    """Reads mesh and cuts of the parameters, and refuses what makes no sense.

    Args:
      who: Function that errors name.
      params: Tree of arrays, real or abstract.
      shardings: Tree like it of `NamedSharding`, or of one `SingleDeviceSharding`; None
        to ask the arrays.

    Returns:
      The parameters.

    Raises:
      TypeError: If a leaf has no such sharding.
      ValueError: If the trees differ, a spec does not divide its leaf, or the leaves
        are not on one mesh with axes of one type.
    """
    leaves = {
        path: (trees.path_string(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if not leaves:
        raise ValueError(f"{who}: there are no parameters, so there is no mesh")
    told: dict[str, Any] = {
        name: getattr(leaf, "sharding", None) for name, leaf in leaves.values()
    }
    if shardings is not None:
        told = {
            trees.path_string(path): sharding
            for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
        }
        _require_alike(who, [name for name, _ in leaves.values()], told)
    first = next(name for name, _ in leaves.values())
    known = {}
    for path, (name, leaf) in leaves.items():
        _require_one_mesh(who, name, told[name], first, told[first])
        cuts: Cuts = ((),) * jnp.ndim(leaf)
        if isinstance(told[name], NamedSharding):
            _require_divides(who, name, jnp.shape(leaf), told[name])
            cuts = cuts_of(told[name].spec, jnp.ndim(leaf))
        known[path] = Parameter(name, jnp.shape(leaf), cuts)
    if isinstance(told[first], SingleDeviceSharding):
        return Parameters(None, _where(told[first]), known)
    mesh = told[first].mesh
    if len(set(mesh.axis_types)) > 1 or AxisType.Manual in mesh.axis_types:
        raise ValueError(
            f"{who}: the mesh has axis types {mesh.axis_types}; make all of them"
            " Explicit or all of them Auto"
        )
    return Parameters(mesh, None, known)


def _require_alike(who: str, names: list[str], told: dict[str, Any]) -> None:
    for name in sorted(set(names) ^ set(told)):
        there, lacks = ("params", "their shardings")
        if name in told:
            there, lacks = lacks, there
        raise ValueError(
            f"{who}: leaf {name!r} is in {there} but not in {lacks}; make the shardings"
            " a tree like the parameters, jax.tree.map(lambda x: x.sharding, params)"
        )


def _require_one_mesh(
    who: str, name: str, sharding: Any, first_name: str, first: Any
) -> None:
    if not isinstance(sharding, NamedSharding | SingleDeviceSharding):
        raise TypeError(
            f"{who}: leaf {name!r} has the sharding {sharding!r}; give the shardings of"
            " the parameters, each a jax.sharding.NamedSharding(mesh, spec)"
        )
    if _where(sharding) != _where(first):
        raise ValueError(
            f"{who}: leaf {name!r} is on {_where(sharding)}, but {first_name!r} is on"
            f" {_where(first)}; place all parameters on one mesh with jax.device_put"
        )


def _where(sharding: Any) -> Any:
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    (device,) = sharding.device_set
    return device


def _require_divides(
    who: str, name: str, shape: tuple[int, ...], sharding: NamedSharding
) -> None:
    spec, sizes = sharding.spec, sharding.mesh.shape
    if len(spec) > len(shape):
        raise ValueError(
            f"{who}: leaf {name!r} of shape {shape} has fewer axes than its {spec}"
        )
    for axis, cut in enumerate(cuts_of(spec, len(shape))):
        if shape[axis] % math.prod(sizes[mesh_axis] for mesh_axis in cut):
            over = " x ".join(f"{mesh_axis}={sizes[mesh_axis]}" for mesh_axis in cut)
            raise ValueError(
                f"{who}: leaf {name!r} has shape {shape}, and its axis {axis} of size"
                f" {shape[axis]} does not divide over {over}; leave that axis uncut in"
                f" its {spec}, or pad the leaf"
            )
