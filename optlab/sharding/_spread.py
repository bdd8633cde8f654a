"""Stacks over a mesh: every device works on whole rows of its own."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optlab.sharding import _slots
from optlab.sharding._moves import Moves, moved, spec_of
from optlab.sharding._parameters import cuts_of

WIRES = (None, "bfloat16")
Function = Callable[[list[jax.Array], Any], tuple[Sequence[Any], Any]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Runs functions of stacks with the rows spread over a mesh; see `spread`.

    Attributes:
      mesh: The mesh.
      axes: Names of the mesh axes over which rows are spread.
      wire_dtype: Dtype of what is sent; None sends arrays as they are.
      pad: What the number of rows is padded to a multiple of.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    wire_dtype: str | None
    pad: int

    def rows(self, stack: jax.Array) -> int:
        """Returns how many rows the stack has when it is spread."""
        return self._moves(stack, self.where(stack)).rows(stack.shape[0])

    def kept(self, tree: Any) -> Any:
        """Places arrays with a row for each row of a spread stack; scalars stay."""
        here = jax.sharding.get_abstract_mesh()
        mesh = self.mesh if here.empty else here

        def place(x: jax.Array) -> jax.Array:
            spec = PartitionSpec(self.axes, *(None,) * (jnp.ndim(x) - 1))
            return jax.reshard(x, NamedSharding(mesh, spec)) if jnp.ndim(x) else x

        return jax.tree.map(place, tree)

    def __call__(
        self,
        function: Function,
        stacks: Sequence[jax.Array],
        kept: Any = (),
        *,
        ranks: Sequence[Any] | None = None,
    ) -> tuple[list[Any], Any]:
        """Runs a function, on each device with its own rows.

        Args:
          function: From stacks, and what is kept, to a result for each stack, arrays
            with as many rows, and what is kept next. It treats each row apart from
            the others and maps zeros to zeros.
          stacks: Arrays of shape (k, ...), sharded in any way.
          kept: Tree of arrays placed by `kept`, such as the state of a method; arrays
            without axes are the same on all devices.
          ranks: For each stack the tree of the numbers of axes of its results; None
            means that each result is one array of its stack's shape.

        Returns:
          The results, placed like their stacks, and what is kept. Results with fewer
          axes than their stack are cut like its rows.

        Raises:
          ValueError: If a stack lies on another mesh, or where cannot be seen.
        """

        def local(
            moves: list[Moves], blocks: list[jax.Array], kept: Any
        ) -> tuple[list[Any], Any]:
            whole = [move.there(x) for move, x in zip(moves, blocks, strict=True)]
            found, kept = function(whole, kept)
            back = [
                jax.tree.map(functools.partial(move.back, length=x.shape[0]), own)
                for own, move, x in zip(found, moves, blocks, strict=True)
            ]
            return back, kept

        return self._run(local, stacks, kept, ranks, [None] * len(stacks))

    def each(
        self, kernel: Callable[[jax.Array], jax.Array], stacks: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Applies a kernel to every stack, and lets no device work on padding.

        Stacks with fewer matrices than half of the devices go together, one matrix to
        a device, as many as fit. What is left of a longer one when all devices have as
        many is dealt to devices which have, as far as can be, none of the others.

        Args:
          kernel: Maps (k, m, n) to (k, m, n) and zero to zero.
          stacks: Arrays of shape (k, m, n), sharded in any way.

        Returns:
          The results, placed like the stacks.

        Raises:
          ValueError: As calling does.
        """

        def local(
            moves: list[Moves], blocks: list[jax.Array], kept: Any
        ) -> tuple[list[Any], Any]:
            return _slots.applied(kernel, moves, blocks), kept

        return self._run(local, stacks, (), None, self._apart(stacks))[0]

    def _apart(self, stacks: Sequence[jax.Array]) -> list[int]:
        """Chooses, for the rest of each stack, the first of the devices that get it."""
        devices = math.prod(self.mesh.shape[axis] for axis in self.axes)
        loads, firsts = np.zeros(devices), [0] * len(stacks)
        costs = [x.shape[-2] * x.shape[-1] * min(x.shape[-2:]) for x in stacks]
        for i in sorted(range(len(stacks)), key=lambda i: -costs[i]):
            runs = [
                (first + np.arange(len(stacks[i]) % devices)) % devices
                for first in range(devices)
            ]
            firsts[i] = min(range(devices), key=lambda first: loads[runs[first]].sum())
            loads[runs[firsts[i]]] += costs[i]
        return firsts

    def _run(
        self,
        function: Callable[..., Any],
        stacks: Sequence[jax.Array],
        kept: Any,
        ranks: Sequence[Any] | None,
        firsts: Sequence[int | None],
    ) -> tuple[list[Any], Any]:
        """Runs a function of the moves and blocks of a device, and what is kept."""
        given = list(map(self.where, stacks))
        moves = list(map(self._moves, stacks, given, firsts))
        ins = [spec_of(move.place) for move in moves]
        ranks = [x.ndim for x in stacks] if ranks is None else list(ranks)
        outs = [
            jax.tree.map(lambda r, p=m.place: spec_of(p if r == len(p) else p[:1]), own)
            for own, m in zip(ranks, moves, strict=True)
        ]
        stay = jax.tree.map(
            lambda x: PartitionSpec(self.axes) if jnp.ndim(x) else PartitionSpec(), kept
        )

        run = self.on_blocks(
            functools.partial(function, moves), (ins, stay), (outs, stay)
        )
        found, kept = run(list(map(moved, stacks, given, ins)), kept)
        back = zip(found, ranks, stacks, ins, given, strict=True)
        return [
            moved(y, NamedSharding(s.mesh, spec), s.spec) if rank == x.ndim else y
            for y, rank, x, spec, s in back
        ], kept

    def on_blocks(
        self, function: Callable[..., Any], ins: Any, outs: Any
    ) -> Callable[..., Any]:
        """Runs a function on the blocks that each device holds; specs say which."""
        return jax.shard_map(
            function,
            # Where a mesh is set, it is that one; else it has to be told.
            mesh=self.mesh if jax.sharding.get_abstract_mesh().empty else None,
            in_specs=ins,
            out_specs=outs,
            # What is the same again after a gather, or a sum, the types do not tell.
            check_vma=False,
        )

    def where(self, x: jax.Array) -> NamedSharding:
        """Reads from its type where an array is."""
        sharding = jax.typeof(x).sharding
        here = jax.sharding.get_abstract_mesh()
        here = self.mesh.abstract_mesh if here.empty else here
        if sharding.mesh.empty and AxisType.Explicit in here.axis_types:
            # Made without a mesh: all devices have it.
            return NamedSharding(here, PartitionSpec())
        if AxisType.Explicit not in sharding.mesh.axis_types:
            raise ValueError(
                "spread: on a mesh with Auto axes nobody sees, while tracing, where an"
                f" array of shape {x.shape} is; say it once:"
                " tx = sharding.placed(tx, shardings of the parameters)"
            )
        if dict(sharding.mesh.shape) != dict(self.mesh.shape):
            raise ValueError(
                f"spread: made for a mesh of {dict(self.mesh.shape)}, got an array of"
                f" shape {x.shape} on one of {dict(sharding.mesh.shape)}; use one mesh"
            )
        return sharding

    def _moves(
        self, x: jax.Array, sharding: NamedSharding, first: int | None = None
    ) -> Moves:
        rows, *others = cuts_of(sharding.spec, x.ndim)
        # What cannot be moved in one step is made whole first: rows in another order,
        # and axes that are not spread over.
        rows = rows if rows == self.axes[: len(rows)] else ()
        kept = [tuple(a for a in own if a in self.axes) for own in others]
        place = (rows, *kept)
        return Moves(self.mesh, self.axes, self.pad, place, self.wire_dtype, first)


def spread(
    mesh: Mesh,
    axes: str | tuple[str, ...],
    *,
    wire_dtype: str | None = None,
    pad: int | None = None,
) -> Spread:
    """Spreads the matrices of an optimizer, with their state, over a mesh.

    For methods that keep factors, bases or moments for each matrix. Matrices of one
    shape are a stack; each device gets some whole ones, does all that the method does
    with them, refreshes included, and keeps their state:

        tx = optimizers.soap(3e-3, rest=..., over=sharding.spread(mesh, "data"))

    A gradient goes there, and its update comes back, in one all-to-all each, whatever
    axes of the matrices are cut; the state never moves. Over mesh axes that cut nothing
    the work is shared too, and updates come back in an all-gather. A stack that does
    not divide is padded with zero matrices.

    Args:
      mesh: Mesh on which the parameters live. With Auto axes the optimizer goes into
        `placed`.
      axes: Name, or names, of the mesh axes.
      wire_dtype: 'bfloat16' sends half the bytes of float32, and rounds gradients and
        updates to three digits; None sends all.
      pad: What the number of matrices is padded to a multiple of. None means the
        number of devices; a number makes states fit meshes of other sizes, too, as
        long as these divide it.

    Returns:
      What methods take as `over`.

    Raises:
      ValueError: If an axis is not in the mesh, Auto and Explicit axes are mixed, or
        pad or the wire's dtype does not do.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import optimizers, sharding
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> tx = optimizers.scale_by_soap(over=sharding.spread(mesh, "data", pad=4))
      >>> with jax.set_mesh(mesh):
      ...     state = tx.init({"up": {"kernel": jnp.ones((2, 3))}})
      >>> state.nu[0].shape  # one matrix, and three more of zeros
      (4, 2, 3)

    Source:
      Written for this library.
    """
    axes = known_axes("spread", mesh, axes)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if wire_dtype not in WIRES:
        raise ValueError(
            f"sharding: wire_dtype must be one of {WIRES}, got {wire_dtype!r}"
        )
    if pad is not None and (pad < 1 or pad % devices):
        raise ValueError(
            f"spread: the {devices} devices of {axes} do not divide pad={pad}"
        )
    return Spread(mesh, axes, wire_dtype, pad or devices)


def known_axes(who: str, mesh: Mesh, axes: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the axes as a tuple, or raises."""
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    if not axes or any(axis not in mesh.shape for axis in axes):
        raise ValueError(
            f"{who}: the mesh has axes {tuple(mesh.shape)}, got {axes}; name one or"
            " more of them"
        )
    if len(set(mesh.axis_types)) > 1:
        raise ValueError(
            f"{who}: the mesh mixes axis types {mesh.axis_types}; make all of them"
            " Explicit or all of them Auto"
        )
    return axes
