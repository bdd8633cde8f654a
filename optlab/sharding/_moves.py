"""The ways of one stack between how it is cut and whole rows on every device."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optlab.sharding._parameters import cuts_of

Names = tuple[str, ...]


def spec_of(names: tuple[Names, ...]) -> PartitionSpec:
    """Writes a spec with an entry for every axis, as types have it."""
    return PartitionSpec(*(one or None for one in names))


def moved(x: jax.Array, at: NamedSharding, to: PartitionSpec) -> jax.Array:
    """Moves an array from where it is on a mesh, unless it is there."""
    if cuts_of(at.spec, x.ndim) == cuts_of(to, x.ndim):
        return x
    return jax.reshard(x, NamedSharding(at.mesh, to))


@dataclasses.dataclass(frozen=True)
class Moves:
    """From the block of a stack that a device holds to whole rows of it, and back.

    Rows go to the devices in the order of `axes`: a run of them to each, the last ones
    get the padding; or, with `first`, as many to all, and what is left one by one to
    the devices from that one on, so that the rests of several stacks can be kept apart.
    Methods are called inside `jax.shard_map`.

    Attributes:
      mesh: The mesh.
      axes: Mesh axes over which the rows are spread.
      multiple: What the number of rows is padded to a multiple of.
      place: Mesh axes that cut each axis of the stack; those of the first begin
        `axes`, the others are among them.
      wire_dtype: Dtype of what is sent, None for the array's own.
      first: Device, along the axes that do not cut the rows, that gets the first of
        the rows that are left; None for runs.
    """

    mesh: Mesh
    axes: Names
    multiple: int
    place: tuple[Names, ...]
    wire_dtype: str | None
    first: int | None = None

    def size(self, names: Names) -> int:
        """Returns the number of devices along mesh axes."""
        return math.prod(self.mesh.shape[name] for name in names)

    def rows(self, length: int) -> int:
        """Returns how many rows a stack of this length has after padding."""
        parts = self.size(self.place[0])
        least = self.multiple // parts
        return parts * least * -(-length // (parts * least))

    @property
    def left(self) -> Names:
        """Axes that do not cut the rows yet."""
        return self.axes[len(self.place[0]) :]

    @property
    def moved(self) -> Names:
        """Axes that cut something else: what they cut is exchanged."""
        cut = [name for names in self.place[1:] for name in names]
        return tuple(name for name in self.left if name in cut)

    @property
    def free(self) -> Names:
        """Axes that cut nothing: their devices hold the same and share the work."""
        return tuple(name for name in self.left if name not in self.moved)

    def there(self, block: jax.Array) -> jax.Array:
        """From a part of every row to some whole rows."""
        length, *sizes = block.shape
        parts = self.size(self.place[0])
        short = self.rows(length * parts) // parts - length
        # Padding with zeros is safe: functions of stacks map zero to zero.
        block = jnp.pad(block, ((0, short), *((0, 0) for _ in sizes)))
        share = (length + short) // self.size(self.left)
        block = self._dealt(block, length)
        block = block.reshape(*map(self._along, self.left), share, *sizes)
        for index, name in reversed(list(enumerate(self.left))):
            if name in self.free:
                mine = jax.lax.axis_index(name)
                block = jax.lax.dynamic_index_in_dim(block, mine, index, keepdims=False)
        if not self.moved:
            return block
        devices = self.size(self.moved)
        return self.joined(self._exchanged(block.reshape(devices, share, *sizes)))

    def joined(self, parts: jax.Array) -> jax.Array:
        """From the parts of all devices along `moved`, in order, to whole rows."""
        share, *sizes = parts.shape[1:]
        parts = parts.reshape(*map(self._along, self.moved), share, *sizes)
        times = map(self.size, self.place[1:])
        whole = [n * devices for n, devices in zip(sizes, times, strict=True)]
        return parts.transpose(self._order).reshape(share, *whole)

    def parted(self, whole: jax.Array) -> jax.Array:
        """Undoes `joined`."""
        share, *sizes = whole.shape
        split = []
        for n, names in zip(sizes, self.place[1:], strict=True):
            split += [*map(self._along, names), n // self.size(names)]
        back = sorted(range(len(self._order)), key=self._order.__getitem__)
        parts = whole.reshape(share, *split).transpose(back)
        sizes = parts.shape[len(self.moved) + 1 :]
        return parts.reshape(self.size(self.moved), share, *sizes)

    def back(self, whole: jax.Array, length: int) -> jax.Array:
        """Undoes `there` for a block of `length` rows, each of any size.

        Rows that have not as many axes as the stack are too small to be cut: all
        devices get all of them.
        """
        share, *sizes = whole.shape
        cut = len(sizes) + 1 == len(self.place)
        gathered, moved = self.free, self.moved
        if not cut:
            gathered, moved = self.left, ()
        block = whole
        if moved:
            block = self._exchanged(self.parted(whole))
            sizes = block.shape[2:]
        if self.size(gathered) > 1:
            gather = functools.partial(jax.lax.all_gather, axis_name=gathered)
            block = self._sent(gather, block)
        given = gathered + moved
        block = block.reshape(*map(self._along, given), share, *sizes)
        order = [given.index(name) for name in self.left]
        rest = range(len(given), block.ndim)
        rows = share * self.size(self.left)
        block = block.transpose(*order, *rest).reshape(rows, *sizes)
        return self._collected(block, length)

    def has_rest(self, length: int) -> jax.Array | None:
        """Tells whether this device has one of the rows that are left.

        None stands for a stack of which none are left, or that is dealt in runs.
        """
        devices = self.size(self.left)
        if self.first is None or not length % devices:
            return None
        here = jax.lax.axis_index(self.left) - self.first
        return here % devices < length % devices

    def _dealt(self, block: jax.Array, length: int) -> jax.Array:
        """Orders padded rows by the device that gets them."""
        devices = self.size(self.left)
        each, rest = divmod(length, devices)
        if self.first is None or not rest:
            return block
        full, last = block[: each * devices], block[each * devices :]
        full = full.reshape(devices, each, *block.shape[1:])
        last = jnp.roll(last, self.first, axis=0)[:, None]
        return jnp.concatenate([full, last], axis=1).reshape(block.shape)

    def _collected(self, block: jax.Array, length: int) -> jax.Array:
        """Undoes `_dealt` and cuts the padding off."""
        devices = self.size(self.left)
        each, rest = divmod(length, devices)
        if self.first is None or not rest:
            return block[:length]
        dealt = block.reshape(devices, each + 1, *block.shape[1:])
        full = dealt[:, :each].reshape(devices * each, *block.shape[1:])
        last = jnp.roll(dealt[:, each], -self.first, axis=0)
        return jnp.concatenate([full, last])[:length]

    @property
    def _order(self) -> tuple[int, ...]:
        """How (sources along `moved`, rows, parts of each axis) becomes whole rows."""
        many = len(self.moved)
        order = [many]
        for axis, names in enumerate(self.place[1:], start=many + 1):
            order += [*map(self.moved.index, names), axis]
        return tuple(order)

    def _along(self, name: str) -> int:
        return self.mesh.shape[name]

    def _exchanged(self, parts: jax.Array) -> jax.Array:
        """Sends the i-th part to the i-th device along `moved`."""
        exchange = functools.partial(
            jax.lax.all_to_all, axis_name=self.moved, split_axis=0, concat_axis=0
        )
        return self._sent(exchange, parts)

    def _sent(self, send: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 2
        if self.wire_dtype is None or not wide:
            return send(x)
        # As integers: some backends widen what narrow floats they are given to send.
        narrow = jax.lax.bitcast_convert_type(x.astype(self.wire_dtype), jnp.uint16)
        got = jax.lax.bitcast_convert_type(send(narrow), jnp.dtype(self.wire_dtype))
        return got.astype(x.dtype)
