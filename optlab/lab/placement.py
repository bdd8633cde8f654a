"""Where the arrays of a run live: one device, or a mesh with Explicit or Auto axes.

The mesh may span several processes, of which each has some of the devices.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from optlab import lab, trees
from optlab.lab import processes

ParamSpec = Callable[[str, jax.Array], PartitionSpec]

# What the axes of a mesh divide that is given by text: only the batch; the batch and
# the parameters; only the parameters.
AXES = ("data", "fsdp", "tp")

# A parameter with fewer numbers is replicated: to divide it costs more than it saves.
WORTH_DIVIDING = 1024


@dataclasses.dataclass(frozen=True)
class Placement:
    """Places the state and the batches of a run.

    Attributes:
      mesh: The mesh; None for one device. Its axes 'data' and 'fsdp' divide the batch,
        or its first one if it has neither.
      param_spec: From a parameter's path and value to its spec; None replicates all.

    Raises:
      LabError: If there are several processes, and one has no device in the mesh.
    """

    mesh: jax.sharding.Mesh | None = None
    param_spec: ParamSpec | None = None

    def __post_init__(self):
        there = set()
        if self.mesh is not None:
            there = {device.process_index for device in self.mesh.devices.flat}
        if processes.count() > 1 and len(there) < processes.count():
            raise lab.LabError(
                f"there are {processes.count()} processes, but the run's mesh has"
                f" devices of {len(there)}; make it over jax.devices()"
            )

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """Names of the mesh axes that divide the batch."""
        names = () if self.mesh is None else self.mesh.axis_names
        return tuple(name for name in names if name in AXES[:2]) or names[:1]

    def params(self, state: Any) -> Any:
        """Places the state of a model."""
        mesh = self.mesh
        if mesh is None:
            return state

        def place(path: Any, leaf: jax.Array) -> jax.Array:
            spec = PartitionSpec()
            if self.param_spec is not None:
                spec = self.param_spec(trees.path_string(path), leaf)
            return put(leaf, NamedSharding(mesh, spec))

        return jax.tree_util.tree_map_with_path(place, state)

    def rest(self, state: Any) -> Any:
        """Replicates what is not on the mesh yet, such as an optimizer's counters."""
        mesh = self.mesh
        if mesh is None:
            return state
        everywhere = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: (
                leaf
                if isinstance(leaf.sharding, NamedSharding)
                else put(leaf, everywhere)
            ),
            state,
        )

    def batch(self, batch: dict[str, np.ndarray], *, whole: bool = False) -> Any:
        """Places a batch, divided over the mesh's batch axes unless `whole`.

        Each process takes the examples of its own devices; `batch` is the same in all.

        Raises:
          LabError: If the axes do not divide the examples.
        """
        if self.mesh is None:
            return batch
        axes = self.batch_axes
        devices = math.prod(self.mesh.shape[axis] for axis in axes)
        for name, array in batch.items():
            if not whole and len(array) % devices:
                named = ", ".join(map(repr, axes))
                raise lab.LabError(
                    f"a batch's {name!r} has {len(array)} examples, which do not divide"
                    f" over the {devices} devices of the mesh axis {named}"
                )
        spec = PartitionSpec() if whole else PartitionSpec(axes)
        sharding = NamedSharding(self.mesh, spec)
        return {name: put(array, sharding) for name, array in batch.items()}

    def pinned(self, state: Any) -> tuple[Any, ...] | None:
        """Returns the shardings that a step must keep, or None if types keep them."""
        if self.mesh is None:
            return None
        return tuple(leaf.sharding for leaf in jax.tree.leaves(state))


def put(array: jax.Array | np.ndarray, sharding: Sharding) -> jax.Array:
    """Places an array that every process holds, or that is on the mesh already.

    Args:
      array: The array; its values are the same in all processes.
      sharding: Where it shall be.

    Returns:
      The array there.
    """
    if sharding.is_fully_addressable or not getattr(
        array, "is_fully_addressable", True
    ):
        return jax.device_put(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        # Keys are whole numbers with one more axis, which is not divided.
        bits = put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(array))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def on_mesh(text: str) -> Placement:
    """Makes a mesh over all devices from a text, and divides the parameters over it.

    Axis `data` divides the batch, `fsdp` the batch and the parameters, `tp` the
    parameters. Of a parameter with two or more axes, `tp` takes the last one that it
    divides and `fsdp` the longest other one. What does not divide, or is small, is
    replicated.

    >>> on_mesh(f"data={jax.device_count()}").batch_axes
    ('data',)

    Args:
      text: NAME=SIZE, with commas between.

    Returns:
      The placement.

    Raises:
      ValueError: If the text cannot be read, or the sizes do not multiply to the number
        of devices.
    """
    sizes = read_axes(text)
    if math.prod(sizes.values()) != jax.device_count():
        raise ValueError(
            f"mesh '{text}' is for {math.prod(sizes.values())} devices, there are"
            f" {jax.device_count()}"
        )
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes))

    def spec(path: str, leaf: jax.Array) -> PartitionSpec:
        del path
        return divided(leaf.shape, sizes)

    return Placement(mesh, spec)


def read_axes(text: str) -> dict[str, int]:
    """Reads the axes of a mesh.

    >>> read_axes("fsdp=4,tp=2")
    {'fsdp': 4, 'tp': 2}

    Args:
      text: NAME=SIZE, with commas between.

    Returns:
      Size by name.

    Raises:
      ValueError: If the text cannot be read.
    """
    sizes: dict[str, int] = {}
    for pair in text.split(","):
        name, _, size = (piece.strip() for piece in pair.partition("="))
        if name not in AXES or name in sizes or not size.isdecimal() or not int(size):
            raise ValueError(
                f"mesh '{text}': write each of {', '.join(AXES)} at most once with its"
                " number of devices, as in 'fsdp=4,tp=2'"
            )
        sizes[name] = int(size)
    return sizes


def divided(shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """Returns the spec that `on_mesh` gives a parameter of this shape.

    Args:
      shape: The shape.
      sizes: Sizes of the mesh axes, as from `read_axes`.

    Returns:
      The spec; empty entries for what stays whole.
    """
    owners: list[str | None] = [None] * len(shape)
    large = len(shape) > 1 and math.prod(shape) >= WORTH_DIVIDING
    for name in ("tp", "fsdp") if large else ():
        fits = [
            axis
            for axis, length in enumerate(shape)
            if name in sizes and owners[axis] is None and length % sizes[name] == 0
        ]
        if fits:
            last = name == "tp"
            owners[fits[-1] if last else max(fits, key=shape.__getitem__)] = name
    return PartitionSpec(*owners)


def automatic(function: Callable[..., Any], out_like: Any) -> Callable[..., Any]:
    """Lets the compiler place what happens inside a function.

    Models are written without placements in mind; under a mesh with Explicit axes a
    sum over a divided axis is an error there. Outside of the function, in the
    optimizer, the axes stay Explicit. Without such axes this is the function itself.

    Args:
      function: Takes and returns arrays.
      out_like: Tree like the outputs; an array's placement is the output's, None
        replicates it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.explicit_axes:
        return function
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(
        lambda leaf: everywhere if leaf is None else jax.typeof(leaf).sharding,
        out_like,
        is_leaf=lambda leaf: leaf is None,
    )
    return jax.sharding.auto_axes(function, out_sharding=shardings)
