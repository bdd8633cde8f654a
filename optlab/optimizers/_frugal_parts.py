"""The parts of the matrices that FRUGAL gives to an optimizer with state.

A part is chosen for stacks of matrices (k, m, n): `empty` makes a first choice, `new`
another one, `down` takes the part out, `remainder` is what it leaves, and `combine`
puts a part, changed, back over a remainder, changed too.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import kernels
from optlab.optimizers import _subspace
from optlab.optimizers._subspace import Basis

# (key, stack (k, lines, width), amount) -> distinct lines, (k, amount), int32
Choose = Callable[[jax.Array, jax.Array, int], jax.Array]

ORDERS = ("random", "ascending", "descending", "mirror")


class ByStack:
    """A part of each stack by itself."""

    def __init__(self, part: Any):
        self.part = part

    def empty(self, shapes: list[Any]) -> list[Any]:
        return [self.part.empty(x) for x in shapes]

    def new(self, key: jax.Array, stacks: list[jax.Array], old: Any, turn: Any) -> Any:
        del turn
        return [self.part.new(key, x, c) for x, c in zip(stacks, old, strict=True)]

    def down(self, stacks: list[jax.Array], chosen: Any) -> list[jax.Array]:
        return [self.part.down(x, c) for x, c in zip(stacks, chosen, strict=True)]

    def remainder(self, stacks: list[jax.Array], low: Any, chosen: Any) -> Any:
        triples = zip(stacks, low, chosen, strict=True)
        return [self.part.remainder(*triple) for triple in triples]

    def combine(self, stacks: list[jax.Array], low: Any, chosen: Any) -> Any:
        triples = zip(stacks, low, chosen, strict=True)
        return [self.part.combine(*triple) for triple in triples]


class Lines:
    """Chosen rows, columns or entries: exact gathers, no products."""

    def __init__(self, projection: str, density: float, side: str, choose: Choose):
        self.projection, self.density = projection, density
        self.side, self.choose = side, choose

    def _lines(self, x: Any) -> jax.Array:
        """Arranges a stack as (k, lines, width)."""
        if self.projection == "entries":
            return x.reshape(x.shape[0], x.shape[1] * x.shape[2], 1)
        return x if self._is_fan_in(*x.shape[1:]) else x.mT

    def _is_fan_in(self, m: int, n: int) -> bool:
        if self.projection == "randperm":
            return _subspace.sides(self.side, m, n)[0]
        return self.projection == "fan_in"

    def empty(self, x: Any) -> jax.Array:
        lines = jax.eval_shape(self._lines, x).shape[1]
        return jnp.zeros((x.shape[0], int(self.density * lines)), jnp.int32)

    def new(self, key: jax.Array, x: jax.Array, old: jax.Array) -> jax.Array:
        if not old.size:
            return old
        # By shape and place in the stack, so that a draw does not depend on how many
        # matrices there are.
        for size in x.shape[1:]:
            key = jax.random.fold_in(key, size)
        return self.choose(key, self._lines(x), old.shape[1])

    def down(self, x: jax.Array, chosen: jax.Array) -> jax.Array:
        return self._lines(x)[jnp.arange(len(x))[:, None], chosen]

    def remainder(self, x: jax.Array, low: jax.Array, chosen: jax.Array) -> jax.Array:
        return self.combine(x, jnp.zeros_like(low), chosen)

    def combine(self, x: jax.Array, low: jax.Array, chosen: jax.Array) -> jax.Array:
        """Writes the part over a stack."""
        lines = self._lines(x).at[jnp.arange(len(x))[:, None], chosen].set(low)
        if self.projection == "entries":
            return lines.reshape(x.shape)
        return lines if self._is_fan_in(*x.shape[1:]) else lines.mT


class Directions:
    """Orthonormal directions, singular or random, of one side or both."""

    def __init__(self, projection: str, density: float, side: str, basis: Basis):
        self.projection, self.density = projection, density
        self.side, self.basis = side, basis

    def empty(self, x: Any) -> Any:
        rank = round(self.density * min(x.shape[1:]))
        return _subspace.empty_bases([x], rank, self.side)[0]

    def new(self, key: jax.Array, x: jax.Array, old: Any) -> Any:
        def random(y: jax.Array, rank: int) -> jax.Array:
            like = jnp.zeros((*y.shape[:2], rank), y.dtype)
            places = jnp.arange(len(like))
            return jnp.linalg.qr(_subspace.normal_matrices(key, like, places))[0]

        basis = self.basis if self.projection == "svd" else random
        return _subspace.new_bases([x], [old], basis)[0]

    def down(self, x: jax.Array, chosen: Any) -> jax.Array:
        return kernels.project(x, *chosen)

    def remainder(self, x: jax.Array, low: jax.Array, chosen: Any) -> jax.Array:
        return x - kernels.lift(low, *chosen)

    def combine(self, x: jax.Array, low: jax.Array, chosen: Any) -> jax.Array:
        """Adds the part to a stack."""
        return x + kernels.lift(low, *chosen)


class Tensors:
    """Whole matrices, one after the other in a buffer that holds any choice of them.

    Arrays cannot grow: the buffer has the size of the largest choice that can come.
    Matrices without entries are not counted.
    """

    def __init__(self, who: str, density: float, order: str, choose: Choose):
        self.who, self.density = who, density
        self.order, self.choose = order, choose

    def _sizes(self, stacks: list[Any]) -> np.ndarray:
        """Counts the entries of every matrix."""
        sizes = [[math.prod(x.shape[1:])] * x.shape[0] for x in stacks if x.size]
        return np.array([size for stack in sizes for size in stack], np.int32)

    def _amount(self, total: int) -> int:
        amount = round(self.density * total)
        if self.order == "mirror" and amount % 2:
            raise ValueError(
                f"{self.who}: order='mirror' takes as many of the first matrices as of"
                f" the last ones, and density={self.density} of {total} matrices is"
                f" {amount}, an odd number; choose another density"
            )
        return amount

    def _window(self, turn: Any, total: int) -> Any:
        """Returns the matrices of a turn: each turn goes on where the last ended."""
        amount = self._amount(total)
        place = np.arange(amount, dtype=np.int32)
        if self.order != "mirror":
            up = (turn % total * amount + place) % total
            return up if self.order == "ascending" else total - 1 - up
        half = max(1, total // 2)
        head = (turn % half * (amount // 2) + place // 2) % half
        return head + place % 2 * (total - 1 - 2 * head)

    def _capacity(self, sizes: np.ndarray) -> int:
        total = len(sizes)
        amount = self._amount(total)
        if not amount:
            return 0
        if self.order == "random":
            return int(np.sort(sizes)[total - amount :].sum())
        turns = np.arange(total)[:, None]
        return int(sizes[self._window(turns, total)].sum(axis=1).max())

    def empty(self, shapes: list[Any]) -> jax.Array:
        return jnp.zeros(self._amount(len(self._sizes(shapes))), jnp.int32)

    def new(self, key: jax.Array, stacks: list[jax.Array], old: Any, turn: Any) -> Any:
        if not old.size:
            return old
        if self.order != "random":
            window = self._window(turn, len(self._sizes(stacks)))
            return jnp.asarray(window, jnp.int32)
        norms = [jnp.sqrt(jnp.sum(x * x, axis=(1, 2))) for x in stacks if x.size]
        lines = jnp.concatenate(norms)[None, :, None]
        return self.choose(key, lines, len(old))[0].astype(jnp.int32)

    def _offsets(self, stacks: list[Any], chosen: jax.Array) -> tuple[jax.Array, int]:
        """Returns where each matrix begins, behind the buffer if it is not chosen."""
        sizes = self._sizes(stacks)
        capacity = self._capacity(sizes)
        taken = jnp.zeros(len(sizes), jnp.int32).at[chosen].set(1) * sizes
        begins = jnp.cumsum(taken) - taken
        return jnp.where(taken > 0, begins, capacity), capacity

    def down(self, stacks: list[jax.Array], chosen: jax.Array) -> list[jax.Array]:
        if not chosen.size:
            return []
        offsets, capacity = self._offsets(stacks, chosen)
        room = capacity + int(max(self._sizes(stacks)))
        buffer = jnp.zeros(room, jnp.result_type(*stacks))

        def put(buffer: jax.Array, pair: Any) -> tuple[jax.Array, None]:
            return jax.lax.dynamic_update_slice(buffer, pair[0], pair[1:]), None

        for x, begins in self._by_stack(stacks, offsets):
            rows = x.reshape(len(x), -1).astype(buffer.dtype)
            buffer, _ = jax.lax.scan(put, buffer, (rows, begins))
        return [buffer[:capacity]]

    def _by_stack(self, stacks: list[jax.Array], each: jax.Array) -> list[Any]:
        """Cuts an array of one number a matrix into those of each stack."""
        full = [x for x in stacks if x.size]
        edges = np.cumsum([len(x) for x in full])[:-1]
        return list(zip(full, jnp.split(each, edges), strict=True))

    def remainder(self, stacks: list[jax.Array], low: Any, chosen: Any) -> Any:
        del low, chosen
        return stacks  # what is chosen is written over

    def combine(self, stacks: list[jax.Array], low: Any, chosen: jax.Array) -> Any:
        """Writes the chosen matrices over the stacks."""
        if not chosen.size:
            return stacks
        offsets, capacity = self._offsets(stacks, chosen)
        buffer = jnp.pad(low[0], (0, int(max(self._sizes(stacks)))))

        def read(x: jax.Array, begins: jax.Array) -> jax.Array:
            size = math.prod(x.shape[1:])
            rows = jax.vmap(
                lambda begin: jax.lax.dynamic_slice(buffer, (begin,), (size,))
            )(begins)
            is_chosen = (begins < capacity)[:, None, None]
            return jnp.where(is_chosen, rows.reshape(x.shape).astype(x.dtype), x)

        changed = (read(*pair) for pair in self._by_stack(stacks, offsets))
        return [next(changed) if x.size else x for x in stacks]
