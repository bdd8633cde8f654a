"""Reads the collectives of a compiled program from its text, HLO."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

KINDS = (
    *("all_to_all", "all_gather", "all_reduce", "reduce_scatter"),
    *("collective_permute", "collective_broadcast", "ragged_all_to_all"),
)
_OPERATIONS = {kind.replace("_", "-"): kind for kind in KINDS}

# Bytes a device of g sends, in bytes of the result on one device: the ring algorithms.
_SENT: dict[str, Callable[[int], float]] = {
    "all_to_all": lambda g: (g - 1) / g,
    "all_gather": lambda g: (g - 1) / g,
    "all_reduce": lambda g: 2 * (g - 1) / g,
    "reduce_scatter": lambda g: g - 1,
    "collective_permute": lambda g: 1,
    "collective_broadcast": lambda g: 1,
    "ragged_all_to_all": lambda g: (g - 1) / g,
}

_DEVICES = re.compile(r"\b(?:replica_count|num_partitions)=(\d+)")
_HEADER = re.compile(r"(ENTRY )?\s*%?([\w.\-]+).*\{$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (.*)")
_OPERATION = re.compile(r"\s*([\w\-]+)\(")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'known_trip_count\\?":\s*\{\\?"n\\?":\\?"(\d+)')
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"')
_ARRAY = re.compile(r"\b([a-z]+(\d*)\w*)\[([\d,<=]*)\]")
_GROUPS = re.compile(
    r"replica_groups=(?:"
    r"\[\d+,(?P<iota>\d+)\]<=|"
    r"(?P<listed>\{\{.*?\}\})|"
    r"(?P<everyone>\{\})|"
    r"mesh\[(?P<mesh>[^\]]*)\].*?\{(?P<axes>[^}]*)\})"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a compiled program.

    Attributes:
      kind: 'all_to_all', 'all_gather', ...
      bytes: Bytes that a device sends each time.
      group_size: Devices that take part together; 2 for a permutation, where each
        device sends to one.
      times: How often it runs in one call of the program; infinite inside a loop
        whose length the compiler does not know.
      in_loop: Whether it is inside a loop.
      op_name: Where it comes from, in JAX's words; '' where the compiler put it in.
    """

    kind: str
    bytes: float
    group_size: int
    times: float
    in_loop: bool
    op_name: str

    @classmethod
    def of(cls, kind: str, result_bytes: float, group_size: int) -> "Collective":
        """Returns one that runs once, from the bytes of its result on a device.

        Args:
          kind: As above.
          result_bytes: Bytes of the result on one device.
          group_size: Devices that take part together.
        """
        sent = _SENT[kind](group_size) * result_bytes
        return cls(kind, sent, group_size, 1, False, "")

    def __str__(self) -> str:
        """One line that says all of it."""
        loop = ", in a loop" if self.in_loop else ""
        return (
            f"{self.kind}: {self.times} x {self.bytes:,.0f} bytes, groups of"
            f" {self.group_size}{loop}, from {self.op_name or 'the compiler'}"
        )


# A collective, or the name of a computation, how often it runs, and if it is a loop's.
_Step = Collective | tuple[str, float, bool]


def read(text: str) -> tuple[Collective, ...]:
    """Lists the collectives that a program's entry reaches, in its order."""
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("collectives: the text has no ENTRY, it is no compiled HLO")
    return tuple(_reached(entry, computations, {}))


def _computations(text: str) -> tuple[dict[str, list[_Step]], str | None]:
    """Returns what each computation of a program does, and the name of the first."""
    module = re.search(r"HloModule.*", text)
    counts = _DEVICES.findall(module[0]) if module else []
    everyone = math.prod(map(int, counts))
    found: dict[str, list[_Step]] = {}
    entry, steps = None, []
    for line in text.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction:
            steps += _steps(instruction[1], everyone)
            continue
        header = _HEADER.match(line.strip())
        if header:
            entry = header[2] if header[1] else entry
            steps = found.setdefault(header[2], [])
    return found, entry


def _steps(line: str, everyone: int) -> Iterator[_Step]:
    """Reads 'type operation(operands), attributes'."""
    result, rest = _split_type(line)
    operation = _OPERATION.match(rest)
    if operation is None:
        return
    kind = _OPERATIONS.get(operation[1].removesuffix("-start"))
    if kind:
        if operation[1].endswith("-start") and kind != "all_reduce":
            # This start's result is (operands, result, what the runtime needs).
            result = _elements(result)[1]
        yield _collective(kind, result, rest, everyone)
    if operation[1] in ("async-update", "async-done"):
        return  # names what its start has called
    loops = operation[1] == "while"
    trips = _TRIPS.search(rest)
    times = (int(trips[1]) if trips else math.inf) if loops else 1
    for what, names in _CALLED.findall(_STRING.sub('""', rest)):
        # The condition is asked once more than the body is run.
        runs = times + 1 if loops and what == "condition" else times
        for called in re.findall(r"[\w.\-]+", names):
            yield called, runs, loops


def _collective(kind: str, result: str, rest: str, everyone: int) -> Collective:
    size = 2 if kind == "collective_permute" else _group_size(rest, everyone)
    name = _OP_NAME.search(rest)
    found = Collective.of(kind, _bytes(result), size)
    return dataclasses.replace(found, op_name=name[1] if name else "")


def _reached(
    name: str, computations: dict[str, list[_Step]], known: dict[str, list[Collective]]
) -> list[Collective]:
    """Lists the collectives that a computation runs, those of its calls included."""
    if name not in known:
        known[name] = found = []
        for step in computations.get(name, ()):
            if isinstance(step, Collective):
                found.append(step)
                continue
            called, times, loops = step
            for one in _reached(called, computations, known):
                runs, inside = one.times * times, one.in_loop or loops
                found.append(dataclasses.replace(one, times=runs, in_loop=inside))
    return known[name]


def _split_type(line: str) -> tuple[str, str]:
    """Cuts an instruction after its type, which for a tuple has blanks in it."""
    depth = 0
    for index, letter in enumerate(line):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter == " ":
            return line[:index], line[index:]
    return line, ""


def _elements(result: str) -> list[str]:
    """Cuts the type of a tuple at its own commas."""
    depth, elements = 0, [""]
    for letter in result[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter == ",":
            elements.append("")
        else:
            elements[-1] += letter
    return elements


def _bytes(result: str) -> int:
    """Bytes of all arrays of a type; numbers of less than a byte are packed."""
    size = 0
    for name, digits, shape in _ARRAY.findall(result):
        bits = 8 if name == "pred" else int(digits or 0)  # a token has no size
        entries = math.prod(int(n) for n in re.findall(r"\d+", shape))
        size += -(-entries * bits // 8)
    return size


def _group_size(rest: str, everyone: int) -> int:
    """Devices of the largest group, in any of the three spellings."""
    groups = _GROUPS.search(rest)
    if groups is None:
        raise ValueError(
            "collectives: cannot read the groups of devices in"
            f" '{rest.strip()[:200]}'; known are replica_groups={{{{0,1}},{{2,3}}}},"
            " [2,2]<=[4] and mesh['x'=2,'y'=2] {'x'}"
        )
    if groups["iota"]:
        return int(groups["iota"])
    if groups["everyone"]:
        return everyone
    if groups["listed"]:
        listed = re.findall(r"\{([\d,]*)\}", groups["listed"])
        return max(len(re.findall(r"\d+", group)) for group in listed)
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", groups["mesh"]))
    # Part of an axis, 'x':(4)2: two devices that are four places apart.
    axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", groups["axes"])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
