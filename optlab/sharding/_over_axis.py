"""Kernels on a mesh: every device works on whole matrices of its own."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class OverAxis:
    """A kernel that spreads its stack of matrices over a mesh; see `over_axis`."""

    kernel: Callable[[jax.Array], jax.Array]
    mesh: Mesh
    axes: tuple[str, ...]
    reshards = True

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the kernel to (k, m, n), or to one matrix (m, n)."""
        if x.ndim == 2:
            return self(x[None])[0]
        if x.ndim != 3:
            raise ValueError(
                f"over_axis: needs a stack (k, m, n) or a matrix (m, n), got {x.shape}"
            )
        devices = math.prod(self.mesh.shape[axis] for axis in self.axes)
        short = -x.shape[0] % devices
        # Padding with zero matrices is safe: kernels map zero to zero.
        padded = jnp.pad(x, ((0, short), (0, 0), (0, 0))) if short else x
        stacked = PartitionSpec(self.axes, None, None)
        if AxisType.Explicit in self.mesh.axis_types:
            way = [*_way(jax.typeof(padded).sharding.spec, self.axes), stacked]
            places = [NamedSharding(self.mesh, spec) for spec in way]
            y = functools.reduce(jax.reshard, places[1:], padded)
            y = functools.reduce(jax.reshard, places[-2::-1], self.kernel(y))
        else:
            y = jax.shard_map(
                self.kernel, mesh=self.mesh, in_specs=stacked, out_specs=stacked
            )(padded)
        return y[: x.shape[0]] if short else y

    def around(
        self, wrap: Callable[[Callable], Callable[[jax.Array], jax.Array]]
    ) -> "OverAxis":
        """Returns the same, with what runs on each device wrapped by a function."""
        return dataclasses.replace(self, kernel=wrap(self.kernel))


def _way(spec: PartitionSpec, axes: tuple[str, ...]) -> list[PartitionSpec]:
    """Placements between a stack's own and whole matrices on each device.

    Mesh axes on the rows move to the stack, then mesh axes on the columns: each move is
    one all-to-all, where a jump from both makes the compiler replicate the stack.
    """
    stack, *rest = [tuple(jax.tree.leaves([entry])) for entry in spec]
    way = [spec]
    if stack == axes[: len(stack)]:
        owner = {axis: index for index, names in enumerate(rest) for axis in names}
        for _, run in itertools.groupby(axes[len(stack) :], owner.get):
            moved = tuple(run)
            stack += moved
            rest = [tuple(a for a in names if a not in moved) for names in rest]
            way.append(PartitionSpec(*(names or None for names in (stack, *rest))))
    return way


def over_axis(
    kernel: Callable[[jax.Array], jax.Array], mesh: Mesh, axes: str | tuple[str, ...]
) -> OverAxis:
    """Makes a kernel work on a mesh, with no communication inside it.

    A stack of matrices, sharded in any way, is redistributed so that each device holds
    whole matrices, goes through the kernel there, and is sent back: two all-to-alls,
    whatever the kernel does in between, and four if rows and columns are both sharded.
    A stack that does not divide is padded with zero matrices.

    Args:
      kernel: Maps (k, m, n) to (k, m, n) and zero to zero.
      mesh: Mesh on which the matrices live, with Explicit or with Auto axes.
      axes: Name, or names, of the mesh axes over which the stack is spread.

    Returns:
      The kernel with the same signature, to be used under `jax.jit`. On Explicit axes
      the result is placed like the argument; on Auto axes the compiler chooses.

    Raises:
      ValueError: If an axis is not in the mesh, or Auto and Explicit axes are mixed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import kernels, sharding
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> kernel = sharding.over_axis(kernels.newton_schulz, mesh, "data")
      >>> with jax.set_mesh(mesh):
      ...     print(kernel(3 * jnp.ones((2, 4, 4)))[0, 0, 0].round(2))
      0.17

    Source:
      Written for this library.
    """
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    missing = [axis for axis in axes if axis not in mesh.shape]
    if missing or not axes:
        raise ValueError(
            f"over_axis: the mesh has axes {tuple(mesh.shape)}, got {axes}; name one or"
            " more of them"
        )
    if len(set(mesh.axis_types)) > 1:
        raise ValueError(
            f"over_axis: the mesh mixes axis types {mesh.axis_types}; make all of them"
            " Explicit or all of them Auto"
        )
    return OverAxis(kernel, mesh, axes)
