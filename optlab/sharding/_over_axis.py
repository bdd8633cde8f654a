"""Kernels on a mesh: every device works on whole matrices of its own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from optlab.sharding import _spread


@dataclasses.dataclass(frozen=True)
class OverAxis:
    """A kernel that spreads its stack of matrices over a mesh; see `over_axis`."""

    kernel: Callable[..., Any]
    over: _spread.Spread
    reshards = True

    @property
    def mesh(self) -> Mesh:
        """The mesh."""
        return self.over.mesh

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which stacks are spread."""
        return self.over.axes

    def __call__(self, x: jax.Array, *others: Any, **settings: Any) -> Any:
        """Applies the kernel to (k, m, n), or to one matrix (m, n).

        Other arrays with k rows are spread alike; all else is handed on.
        """
        if x.ndim == 2:
            one = self(x[None], *others, **settings)
            return jax.tree.map(lambda y: y[0], one)
        if x.ndim != 3:
            raise ValueError(
                f"over_axis: needs a stack (k, m, n) or a matrix (m, n), got {x.shape}"
            )
        if not others and not settings:
            return self.each([x])[0]
        stacked = [jnp.ndim(y) > 0 and len(y) == len(x) for y in others]
        arrays = [x, *(y for y, also in zip(others, stacked, strict=True) if also)]

        def kernel(*arrays: jax.Array) -> Any:
            rest = iter(arrays[1:])
            given = zip(others, stacked, strict=True)
            own = (next(rest) if also else y for y, also in given)
            return self.kernel(arrays[0], *own, **settings)

        if self._hides(x):
            return self._unseen(kernel, arrays)
        shapes = [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in arrays]
        ranks = jax.tree.map(lambda y: y.ndim, jax.eval_shape(kernel, *shapes))
        found, _ = self.over(
            lambda arrays, kept: ([kernel(*arrays), *(None for _ in arrays[1:])], kept),
            arrays,
            ranks=[ranks, *(None for _ in arrays[1:])],
        )
        return found[0]

    def each(self, stacks: list[jax.Array]) -> list[jax.Array]:
        """Applies the kernel to stacks (k, m, n), dealt so that none work in vain."""
        if any(map(self._hides, stacks)):
            return [self._unseen(self.kernel, [x]) for x in stacks]
        return self.over.each(self.kernel, stacks)

    def around(
        self, wrap: Callable[[Callable], Callable[[jax.Array], jax.Array]]
    ) -> "OverAxis":
        """Returns the same, with what runs on each device wrapped by a function."""
        return dataclasses.replace(self, kernel=wrap(self.kernel))

    def _hides(self, x: jax.Array) -> bool:
        """Tells whether nobody sees, while tracing, where an array is."""
        seen = AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
        return AxisType.Auto in self.over.mesh.axis_types and not seen

    def _unseen(self, kernel: Callable[..., Any], arrays: list[jax.Array]) -> Any:
        """Only the compiler knows where the arrays are: it moves them its own way."""
        count = len(arrays[0])
        short = -count % self.over.pad
        stacked = PartitionSpec(self.over.axes)
        run = jax.shard_map(
            kernel, mesh=self.over.mesh, in_specs=stacked, out_specs=stacked
        )
        padded = [jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1))) for x in arrays]
        return jax.tree.map(lambda y: y[:count], run(*padded))


def over_axis(
    kernel: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    axes: str | tuple[str, ...],
    *,
    wire_dtype: str | None = None,
) -> OverAxis:
    """Makes a kernel work on a mesh, with no communication inside it.

    A stack of matrices, sharded in any way, is redistributed so that each device holds
    whole matrices, goes through the kernel there, and is sent back:

        cut over rows, columns or both          one all-to-all there, one back
        cut over the stack alone                nothing is sent
        the same on all devices                 each takes its share, one all-gather

    whatever the kernel does in between. A device sends and receives (d - 1) / d of what
    it holds, d being the number of devices, and no way sends less. A stack that does
    not divide is padded with zero matrices.

    Placement is read from types. On a mesh with Explicit axes they are always there; on
    one with Auto axes wrap the optimizer in `placed`, or the compiler will choose the
    way, which is a good one on one mesh axis and gathers everything on two.

    Args:
      kernel: Maps (k, m, n) to (k, m, n) and zero to zero.
      mesh: Mesh on which the matrices live, with Explicit or with Auto axes.
      axes: Name, or names, of the mesh axes over which the stack is spread. Over axes
        that cut nothing the work is shared, over axes that are not named repeated.
      wire_dtype: 'bfloat16' sends half the bytes of float32 and rounds, to three
        digits, what goes into the kernel and what comes out of it; None sends all.

    Returns:
      The kernel with the same signature, to be used under `jax.jit`. The result is
      placed like the argument.

    Raises:
      ValueError: If an axis is not in the mesh, Auto and Explicit axes are mixed, the
        wire's dtype is unknown, or an array comes from a mesh of another shape.

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
    return OverAxis(kernel, _spread.spread(mesh, axes, wire_dtype=wire_dtype))
