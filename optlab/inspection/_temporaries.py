"""How much memory a program needs beside its arguments and results."""

import bisect
import dataclasses
from collections.abc import Callable, Sequence

from optlab.inspection._traced import MOVING, Op, Program, Value

# The same numbers under another shape.
RENAMING = frozenset(
    (
        *("reshape", "squeeze", "expand_dims", "bitcast_convert_type", "pvary"),
        *("stop_gradient", "copy", "pcast"),
    )
)
# What writes arrays of its own. All else is done entry by entry, and runs together with
# what reads it.
WRITING = frozenset(
    (
        *("dot_general", "conv_general_dilated", "cond", "scan", "while", "sort"),
        *("eigh", "svd", "qr", "geqrf", "householder_product", "cholesky", "lu"),
        *("triangular_solve", "all_to_all", "all_gather", "psum", "reduce_scatter"),
        *("psum_invariant", "all_gather_invariant", "ppermute", "pmax", "pmin"),
    )
)
SUMMING = ("reduce", "arg", "cum")
# What is computed once and stored if two things read it; the rest is computed again.
DEAR = frozenset(
    ("div", "sqrt", "rsqrt", "exp", "log", "pow", "tanh", "logistic", "erf", "sin")
)
ALIGNMENT = 64


@dataclasses.dataclass(eq=False)
class Buffer:
    """Bytes that are in use from one time to another one, both included."""

    bytes: int
    start: int
    end: int


def bytes_needed(program: Program, donated: int) -> int:
    """Returns the bytes beside arguments and results, as a compiler would place them.

    Args:
      program: What a device does.
      donated: How many arguments, from the first on, are given away to the results of
        the same number.
    """
    buffers = _Timeline().run(program, donated)
    orders: tuple[Callable[[Buffer], tuple], ...] = (
        lambda b: (-b.bytes, b.start - b.end),
        lambda b: (b.start - b.end, -b.bytes),
    )
    return min(_packed(sorted(buffers, key=order)) for order in orders)


def _packed(buffers: Sequence[Buffer]) -> int:
    """Places buffers one after the other, each in the smallest gap that holds it."""
    placed: list[tuple[int, int, Buffer]] = []  # from, to, by place
    highest = 0
    for buffer in buffers:
        size = -(-buffer.bytes // ALIGNMENT) * ALIGNMENT
        low, best, free = 0, None, None
        for start, stop, other in placed:
            if other.end < buffer.start or buffer.end < other.start:
                continue
            gap = start - low
            if gap >= size and (best is None or gap < best):
                best, free = gap, low
            low = max(low, stop)
        at = low if free is None else free
        bisect.insort(placed, (at, at + size, buffer), key=lambda one: one[0])
        highest = max(highest, at + size)
    return highest


class _Timeline:
    """Notes when each stored array is in use, in the order of the program."""

    def __init__(self):
        self.now = 0

    def tick(self) -> int:
        """Moves on by one."""
        self.now += 1
        return self.now

    def run(
        self, program: Program, donated: int = 0, *, inside: bool = False
    ) -> list[Buffer]:
        """Returns the buffers of a program.

        Args:
          program: What a device does.
          donated: As for `bytes_needed`.
          inside: Whether it is a branch: then its results count, from when they are
            made on; those of the whole program do not.
        """
        walk = _Walk(program, donated, inside)
        begin = self.tick()
        zeros: dict[tuple[int, ...], Buffer] = {}
        for index, op in enumerate(walk.steps):
            start = self.tick()
            if op.name == "all_to_all":
                # First it is cut into the pieces for each device.
                walk.done.append(Buffer(op.outs[0].bytes, start, start + 1))
                walk.retire(index, self.now)
                start = self.tick()
            if turned := _turned(op):
                walk.done.append(Buffer(turned, start, start))
            if op.name == "scan":
                # Loops fill arrays of zeros, made once for each shape, before all else.
                for v in op.outs:
                    zero = zeros.setdefault(v.shape, Buffer(v.bytes, begin, begin))
                    zero.end = start
                start = self.tick()
            for body in op.bodies:
                walk.done += self.run(body, inside=len(op.bodies) > 1)
            self.now += bool(op.bodies)
            walk.make(index, start, self.now)
            walk.retire(index, self.now)
        walk.retire_all(self.now)
        return walk.done + list(zeros.values())


class _Walk:
    """The arrays that are in use while a program is walked through.

    Attributes:
      steps: The primitives that write to memory.
      done: Buffers of the past.
    """

    def __init__(self, program: Program, donated: int, inside: bool):
        flow = _Flow(program)
        self.inside = inside
        self.arguments = program.ins[:donated]
        self.stored = flow.stored
        self.steps = [
            op for op in program.ops if any(id(v) in flow.stored for v in op.outs)
        ]
        self.sources = [flow.sources(op) for op in self.steps]
        self.last = {key: i for i, found in enumerate(self.sources) for key in found}
        numbered = reversed(list(enumerate(program.outs)))
        self.results = {id(flow.root(v)): number for number, v in numbered}
        self.live: dict[int, Buffer] = {}
        self.done: list[Buffer] = []

    def make(self, index: int, start: int, now: int) -> None:
        """Gives the results of a step their buffers."""
        op = self.steps[index]
        for v in op.outs:
            number = self.results.get(id(v))
            if id(v) not in self.stored:
                continue
            if number is not None and not self.inside:
                if number < len(self.arguments) and self.clashes(index, number):
                    # The argument is copied before all else, to make room.
                    self.done.append(Buffer(v.bytes, 0, now))
                continue
            reused = None if number is not None else self.reusable(index, v)
            buffer = Buffer(v.bytes, start, start)
            self.live[id(v)] = buffer if reused is None else self.live.pop(reused)

    def clashes(self, index: int, number: int) -> bool:
        """Whether a result cannot go where its argument is, which is still read."""
        argument, op = id(self.arguments[number]), self.steps[index]
        later = self.last.get(argument, -1) > index
        return later or (bool(op.bodies) and argument in self.sources[index])

    def reusable(self, index: int, v: Value) -> int | None:
        """What dies here makes room, if entries stay at their places."""
        name = self.steps[index].name
        if name in WRITING or name in MOVING or name.startswith(SUMMING):
            return None
        for key, straight in self.sources[index].items():
            fits = key in self.live and self.live[key].bytes == v.bytes
            if straight and fits and self.last[key] == index:
                return key
        return None

    def retire(self, index: int, now: int) -> None:
        """Frees what nobody reads after a step."""
        made = {id(v): index for v in self.steps[index].outs}
        for key in {**self.sources[index], **made}:
            read = self.last.get(key, index)
            if key in self.live and read == index and key not in self.results:
                self.free(key, now)

    def retire_all(self, now: int) -> None:
        """Frees the rest."""
        for key in list(self.live):
            self.free(key, now)

    def free(self, key: int, now: int) -> None:
        """Moves a buffer to those of the past."""
        buffer = self.live.pop(key)
        buffer.end = now
        self.done.append(buffer)


def _order(op: Op) -> list[int]:
    """How a transposition orders the axes that have more than one entry."""
    return [axis for axis in op.params["permutation"] if op.ins[0].shape[axis] > 1]


def _renames(op: Op) -> bool:
    """Whether the numbers stay where they are."""
    if op.name == "transpose":
        return _order(op) == sorted(_order(op))
    return op.name in RENAMING


def _swaps(op: Op) -> bool:
    """Whether this turns matrices, which products read from either side."""
    if op.name != "transpose":
        return False
    *front, i, j = op.params["permutation"]
    return (*front, j, i) == (*range(len(front)), len(front), len(front) + 1)


def _turned(op: Op) -> int:
    """Bytes of operands that a product wants in another order, (m, k) and (k, n)."""
    if op.name != "dot_general":
        return 0
    summed, batch = op.params["dimension_numbers"]
    if op.ins[0] is op.ins[1]:
        return 0
    found = 0
    for first, (v, axes, front) in enumerate(zip(op.ins, summed, batch, strict=True)):
        free = [i for i, n in enumerate(v.shape) if n > 1 and i not in (*axes, *front)]
        last = axes if first == 0 else free
        others = free if first == 0 else axes
        if any(
            i > j for i in others for j in last if v.shape[i] > 1 and v.shape[j] > 1
        ):
            found += v.bytes
    return found


class _Flow:
    """Which arrays of a program are stored, and what each is made of."""

    def __init__(self, program: Program):
        self.maker = {id(v): op for op in program.ops for v in op.outs}
        self.stored = self.find_stored(program)

    def root(self, v: Value, *, turned: bool = False) -> Value:
        """Returns the array that another one is a name of, or, if turned, a view."""
        while True:
            op = self.maker.get(id(v))
            if op is None:
                return v
            if op.name == "optimization_barrier":
                v = op.ins[[id(out) for out in op.outs].index(id(v))]
            elif _renames(op) or (turned and _swaps(op)):
                v = op.ins[0]
            else:
                return v

    def find_stored(self, program: Program) -> set[int]:
        """Returns the arrays that are written to memory."""
        stored = {id(self.root(v)) for v in program.outs}
        readers: dict[int, set[int]] = {}
        for op in program.ops:
            if not _renames(op):
                for v in op.ins:
                    readers.setdefault(id(self.root(v)), set()).add(id(op))
        for op in program.ops:
            if op.name in WRITING:
                turned = op.name == "dot_general"
                stored |= {id(self.root(v, turned=turned)) for v in op.ins}
                stored |= set(map(id, op.outs))
            elif op.name.startswith(SUMMING):
                stored |= set(map(id, op.outs))
            elif op.name == "transpose" and not _renames(op) and not _swaps(op):
                stored.add(id(op.outs[0]))
            elif op.name in DEAR and len(readers.get(id(op.outs[0]), ())) > 1:
                stored.add(id(op.outs[0]))
        return stored

    def sources(self, op: Op) -> dict[int, bool]:
        """Returns the stored arrays that a step reads, and if entry by entry."""
        found: dict[int, bool] = {}
        seen = set()

        def follow(v: Value, straight: bool) -> None:
            v = self.root(v, turned=op.name == "dot_general")
            maker = self.maker.get(id(v))
            if id(v) in self.stored or maker is None:
                found[id(v)] = straight and found.get(id(v), True)
            elif (id(v), straight) not in seen:
                seen.add((id(v), straight))
                for x in maker.ins:
                    follow(x, straight and maker.name not in MOVING)

        for v in op.ins:
            follow(v, True)
        return found
