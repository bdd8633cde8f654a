"""Where the arrays of a run live: one device, or a mesh with Explicit or Auto axes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optlab import lab, trees

ParamSpec = Callable[[str, jax.Array], PartitionSpec]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Places the state and the batches of a run.

    Attributes:
      mesh: The mesh, whose first axis divides the batch; None for one device.
      param_spec: From a parameter's path and value to its spec; None replicates all.
    """

    mesh: jax.sharding.Mesh | None = None
    param_spec: ParamSpec | None = None

    def params(self, state: Any) -> Any:
        """Places the state of a model."""
        mesh = self.mesh
        if mesh is None:
            return state

        def put(path: Any, leaf: jax.Array) -> jax.Array:
            spec = PartitionSpec()
            if self.param_spec is not None:
                spec = self.param_spec(trees.path_string(path), leaf)
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        return jax.tree_util.tree_map_with_path(put, state)

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
                else jax.device_put(leaf, everywhere)
            ),
            state,
        )

    def batch(self, batch: dict[str, np.ndarray], *, whole: bool = False) -> Any:
        """Places a batch, divided over the mesh's first axis unless `whole`.

        Raises:
          LabError: If the axis does not divide the examples.
        """
        if self.mesh is None:
            return batch
        axis = self.mesh.axis_names[0]
        devices = self.mesh.shape[axis]
        for name, array in batch.items():
            if not whole and len(array) % devices:
                raise lab.LabError(
                    f"a batch's {name!r} has {len(array)} examples, which do not divide"
                    f" over the {devices} devices of the mesh axis {axis!r}"
                )
        spec = PartitionSpec() if whole else PartitionSpec(axis)
        return jax.device_put(batch, NamedSharding(self.mesh, spec))

    def pinned(self, state: Any) -> tuple[Any, ...] | None:
        """Returns the shardings that a step must keep, or None if types keep them."""
        if self.mesh is None:
            return None
        return tuple(leaf.sharding for leaf in jax.tree.leaves(state))


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
