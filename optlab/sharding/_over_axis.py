"""Kernels on a mesh: every device works on whole matrices of its own."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OverAxis:
    """A kernel that spreads its stack of matrices over a mesh; see `over_axis`."""

    kernel: Callable[[jax.Array], jax.Array]
    mesh: Mesh
    axes: Names
    wire_dtype: str | None = None
    reshards = True

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the kernel to (k, m, n), or to one matrix (m, n)."""
        if x.ndim == 2:
            return self(x[None])[0]
        if x.ndim != 3:
            raise ValueError(
                f"over_axis: needs a stack (k, m, n) or a matrix (m, n), got {x.shape}"
            )
        seen = jax.typeof(x).sharding
        if AxisType.Auto in seen.mesh.axis_types:
            return self._unseen(x)
        if not seen.mesh.empty and dict(seen.mesh.shape) != dict(self.mesh.shape):
            raise ValueError(
                f"over_axis: made for a mesh of {dict(self.mesh.shape)}, got an array"
                f" on one of {dict(seen.mesh.shape)}; use one mesh for both"
            )
        if AxisType.Auto in self.mesh.axis_types and seen.mesh.empty:
            return self._unseen(x)
        return self._seen(x, seen)

    def around(
        self, wrap: Callable[[Callable], Callable[[jax.Array], jax.Array]]
    ) -> "OverAxis":
        """Returns the same, with what runs on each device wrapped by a function."""
        return dataclasses.replace(self, kernel=wrap(self.kernel))

    def _unseen(self, x: jax.Array) -> jax.Array:
        """On Auto axes the compiler knows where x is, and it alone: it moves x."""
        devices = math.prod(self.mesh.shape[axis] for axis in self.axes)
        short = -x.shape[0] % devices
        padded = jnp.pad(x, ((0, short), (0, 0), (0, 0))) if short else x
        stacked = PartitionSpec(self.axes, None, None)
        y = jax.shard_map(
            self.kernel, mesh=self.mesh, in_specs=stacked, out_specs=stacked
        )(padded)
        return y[: x.shape[0]] if short else y

    def _seen(self, x: jax.Array, sharding: NamedSharding) -> jax.Array:
        """With its placement known, x goes to whole matrices in one all-to-all."""
        # A matrix cut over an axis that is not named is made whole over it first.
        spec = [_names(entry) for entry in sharding.spec]
        kept = [tuple(a for a in names if a in self.axes) for names in spec[1:]]
        if kept != spec[1:]:
            where = PartitionSpec(spec[0] or None, *(names or None for names in kept))
            whole = NamedSharding(sharding.mesh, where)
            return jax.reshard(self(jax.reshard(x, whole)), sharding)
        moves = _Moves(self.mesh, self.axes, *spec, wire_dtype=self.wire_dtype)
        place = PartitionSpec(*(names or None for names in spec))

        def local(block: jax.Array) -> jax.Array:
            return moves.back(self.kernel(moves.there(block)), block)

        # Where a mesh is set, it is that one; else it has to be told.
        known = not jax.sharding.get_abstract_mesh().empty
        run = jax.shard_map(
            local,
            mesh=None if known else self.mesh,
            in_specs=place,
            out_specs=place,
            # Replicated again after the gather, which the types do not tell.
            check_vma=False,
        )
        return run(x)


@dataclasses.dataclass(frozen=True)
class _Moves:
    """The ways between the block of a stack that a device holds and its matrices.

    Attributes:
      mesh: The mesh.
      axes: Mesh axes over which the stack shall be spread.
      stack, rows, columns: Mesh axes over which the array's three axes are cut.
      wire_dtype: Dtype of what is sent.
    """

    mesh: Mesh
    axes: Names
    stack: Names
    rows: Names
    columns: Names
    wire_dtype: str | None

    def _size(self, names: Names) -> int:
        return math.prod(self.mesh.shape[name] for name in names)

    @property
    def _moved(self) -> Names:
        """Axes that cut matrices: what they cut is exchanged."""
        return self.rows + self.columns

    @property
    def _free(self) -> Names:
        """Axes that cut nothing: their devices hold the same and share the work."""
        cut = self.stack + self._moved
        return tuple(axis for axis in self.axes if axis not in cut)

    def there(self, block: jax.Array) -> jax.Array:
        """From a part of every matrix to some whole matrices."""
        k, m, n = block.shape
        devices, free = self._size(self._moved), self._size(self._free)
        # Padding with zero matrices is safe: kernels map zero to zero.
        short = -k % (devices * free)
        block = jnp.pad(block, ((0, short), (0, 0), (0, 0))) if short else block
        k += short
        if free > 1:
            first = jax.lax.axis_index(self._free) * (k // free)
            block = jax.lax.dynamic_slice_in_dim(block, first, k // free)
            k //= free
        if devices == 1:
            return block
        parts = self._exchanged(block.reshape(devices, k // devices, m, n))
        p, q = self._size(self.rows), self._size(self.columns)
        # One all-to-all for rows and columns: the parts come in the order of devices.
        parts = parts.reshape(p, q, k // devices, m, n).transpose(2, 0, 3, 1, 4)
        return parts.reshape(k // devices, p * m, q * n)

    def back(self, whole: jax.Array, like: jax.Array) -> jax.Array:
        """Undoes `there`; `like` is the block that it was given."""
        k, m, n = like.shape
        devices, p, q = *map(self._size, (self._moved, self.rows, self.columns)),
        if devices > 1:
            share = whole.shape[0]
            parts = whole.reshape(share, p, m, q, n).transpose(1, 3, 0, 2, 4)
            parts = self._exchanged(parts.reshape(devices, share, m, n))
            whole = parts.reshape(devices * share, m, n)
        if self._size(self._free) > 1:
            whole = self._sent(
                functools.partial(
                    jax.lax.all_gather, axis_name=self._free, axis=0, tiled=True
                ),
                whole,
            )
        return whole[:k]

    def _exchanged(self, parts: jax.Array) -> jax.Array:
        """Sends the i-th part to the i-th device of those that cut matrices."""
        return self._sent(
            functools.partial(
                jax.lax.all_to_all,
                axis_name=self._moved,
                split_axis=0,
                concat_axis=0,
            ),
            parts,
        )

    def _sent(self, send: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        if self.wire_dtype is None or x.dtype.itemsize <= 2:
            return send(x)
        # As integers: some backends widen what narrow floats they are given to send.
        narrow = jax.lax.bitcast_convert_type(x.astype(self.wire_dtype), jnp.uint16)
        wide = jax.lax.bitcast_convert_type(send(narrow), jnp.dtype(self.wire_dtype))
        return wide.astype(x.dtype)


def _names(entry: None | str | Names) -> Names:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


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
    if wire_dtype not in (None, "bfloat16"):
        raise ValueError(
            f"over_axis: wire_dtype must be None or 'bfloat16', got {wire_dtype!r}"
        )
    return OverAxis(kernel, mesh, axes, wire_dtype)
