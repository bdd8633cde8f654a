"""Which way for a stack of matrices over a mesh costs least time."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from optlab.sharding._compiled_text import Collective
from optlab.sharding._parameters import cuts_of

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a device does in a second.

    The defaults are round numbers of the size of one accelerator in a pod, taken from
    no data sheet and not measured: give those of yours.

    Attributes:
      flops: FLOPs of products of matrices, per second.
      link: Bytes that it sends, per second.
      latency: Seconds that a collective takes beside its bytes.
    """

    flops: float = 1e14
    link: float = 5e10
    latency: float = 2e-5

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not (value > 0 or (value == 0 and name == "latency")):
                raise ValueError(f"Hardware: {name} must be above 0, got {value}")

    def seconds(self, flops: float, sent: float, collectives: float) -> float:
        """Returns the time of work and sending, one after the other."""
        return flops / self.flops + sent / self.link + collectives * self.latency


@dataclasses.dataclass(frozen=True)
class Way:
    """One way for a stack, in numbers of one device and step.

    Attributes:
      name: 'local', 'layer-sharded', 'duplicated' or 'block-periodic'.
      axes: Mesh axes over which matrices are dealt out.
      flops: FLOPs.
      bytes: Bytes sent.
      collectives: How many collectives.
      seconds: Time on the hardware.
    """

    name: str
    axes: Names
    flops: float
    bytes: float
    collectives: float
    seconds: float

    def __str__(self) -> str:
        """All of it in a line."""
        over = f" over {', '.join(self.axes)}" if self.axes else ""
        return (
            f"{self.name + over:34} {self.flops / 1e9:10.3f} GFLOP"
            f" {self.bytes / 1e6:10.3f} MB {self.collectives:5g} collectives"
            f" {1e3 * self.seconds:9.3f} ms"
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """The ways for a stack; see `cheapest`.

    Attributes:
      shape: The stack, (k, m, n).
      spec: How it is cut.
      ways: All ways, the cheapest first.
    """

    shape: tuple[int, int, int]
    spec: PartitionSpec
    ways: tuple[Way, ...]

    @property
    def best(self) -> Way:
        """The cheapest way."""
        return self.ways[0]

    def __str__(self) -> str:
        """A line for each way, the cheapest first."""
        count, m, n = self.shape
        head = f"{count} x ({m}, {n}) cut as {self.spec}:"
        return "\n".join([head, *(f"  {way}" for way in self.ways)])


def cheapest(
    shape: tuple[int, int, int],
    spec: PartitionSpec,
    mesh: Mesh | AbstractMesh,
    *,
    flops: float,
    every: int | None = None,
    block_flops: float | None = None,
    itemsize: int = 4,
    hardware: Hardware | None = None,
) -> Choice:
    """Compares the ways for a stack of equal matrices, from shapes and mesh alone.

    What a device does, with b its bytes of the stack, k matrices of F FLOPs each:

        local           matrices are whole on each device: the work of those it has
        layer-sharded   dealt out over some mesh axes, d devices: ceil(k / d) F; each
                        matrix goes to one device and comes back: 2 b (g - 1) / g over
                        the g devices that cut it, in two all-to-alls; over f devices
                        that cut nothing b (f - 1) / f, in one all-gather; cut over
                        axes that are not among them, it is gathered first
        duplicated      all have all: k F, and b (g - 1) in one all-gather
        block-periodic  each device its own block, and layer-sharded every so many steps

        time = FLOPs / (FLOPs a second) + bytes / (bytes a second) + collectives latency

    Bytes are those of stacks that divide over the mesh: what is added to one that does
    not is not counted. A stack whose k axis is cut keeps that cut.

    Args:
      shape: (k, m, n).
      spec: Mesh axes that cut each of the three.
      mesh: The mesh.
      flops: FLOPs for one whole matrix.
      every: Steps between two whole ones of the block-periodic method; None leaves it
        out, for its updates are others: `optimizers.muon_bp`.
      block_flops: FLOPs for the block of a matrix that a device has; None means that
        they shrink as the block's area does.
      itemsize: Bytes of an entry that is sent.
      hardware: Speeds; None means the defaults.

    Returns:
      The ways in the order of time; `print` lists them.

    Raises:
      ValueError: If an axis is not in the mesh or does not divide, or a number is no
        count.

    Example:
      >>> from jax.sharding import AbstractMesh, PartitionSpec
      >>> from optlab import sharding
      >>> mesh = AbstractMesh((8,), ("fsdp",))
      >>> many = sharding.cheapest(
      ...     (64, 1024, 4096), PartitionSpec(None, "fsdp"), mesh, flops=5e10
      ... )
      >>> many.best.name, many.best.collectives, round(many.best.bytes / 1e6)
      ('layer-sharded', 2, 235)
      >>> one = sharding.cheapest(
      ...     (1, 64, 64), PartitionSpec(None, "fsdp"), mesh, flops=8e6
      ... )
      >>> one.best.name
      'duplicated'

    Source:
      Written for this library. Block-periodic: Khaled et al. 2025, arXiv 2510.16981.
    """
    hardware = hardware or Hardware()
    stack = _Stack(shape, _cuts(shape, spec, mesh), dict(mesh.shape), flops, itemsize)
    if every is not None and every < 1:
        raise ValueError(f"cheapest: every must be 1 step or more, got {every}")
    found = list(stack.ways())
    inside = stack.size(stack.inside)
    if every is not None and inside > 1:
        own = flops / inside if block_flops is None else block_flops
        own *= shape[0] / stack.size(stack.cuts[0])
        whole = [one for one in found if one[0] == "layer-sharded"]
        _, axes, work, sent, count = min(
            whole, key=lambda one: hardware.seconds(*one[2:])
        )
        mean = (work + (every - 1) * own) / every
        found.append(("block-periodic", axes, mean, sent / every, count / every))
    ways = [Way(*one, seconds=hardware.seconds(*one[2:])) for one in found]
    return Choice(shape, spec, tuple(sorted(ways, key=lambda way: way.seconds)))


def _cuts(shape: tuple, spec: PartitionSpec, mesh: Mesh | AbstractMesh):
    if len(shape) != 3 or any(size < 1 for size in shape) or len(spec) > 3:
        raise ValueError(
            f"cheapest: needs a stack (k, m, n) and a spec of its axes, got {shape} and"
            f" {spec}"
        )
    cuts = cuts_of(spec, 3)
    for size, names in zip(shape, cuts, strict=True):
        for name in names:
            if name not in mesh.shape:
                raise ValueError(
                    f"cheapest: the mesh has axes {tuple(mesh.shape)}, the spec"
                    f" {spec} names {name!r}"
                )
        if size % math.prod(mesh.shape[name] for name in names):
            raise ValueError(
                f"cheapest: {size} of {shape} does not divide over {names} of"
                f" {dict(mesh.shape)}; leave it uncut in {spec}"
            )
    return cuts


@dataclasses.dataclass(frozen=True)
class _Stack:
    """A stack of matrices and how it is cut."""

    shape: tuple[int, int, int]
    cuts: tuple[Names, ...]
    sizes: Mapping[str, int]
    flops: float
    itemsize: int

    def size(self, names: Names) -> int:
        return math.prod(self.sizes[name] for name in names)

    @property
    def inside(self) -> Names:
        """Axes that cut matrices."""
        return self.cuts[1] + self.cuts[2]

    def ways(self) -> Iterator[tuple[str, Names, float, float, float]]:
        """Yields name, axes, FLOPs, bytes and collectives of each way."""
        own = self.cuts[0]
        others = [name for name in self.sizes if name not in own]
        for count in range(len(others) + 1):
            for more in itertools.combinations(others, count):
                if self.size(more) > 1 or not more:
                    yield self.way(own, more)

    def way(self, own: Names, more: Names) -> tuple[str, Names, float, float, float]:
        """Deals the rows that a device has out over more axes."""
        rows = self.shape[0] // self.size(own)
        held = math.prod(self.shape) * self.itemsize
        held /= self.size(own) * self.size(self.inside)
        apart = tuple(name for name in self.inside if name not in more)
        moved = tuple(name for name in self.inside if name in more)
        free = tuple(name for name in more if name not in self.inside)
        held *= self.size(apart)
        share = held / self.size(free)
        exchange = ("all_to_all", share, moved)
        sends = (
            ("all_gather", held, apart),
            exchange,
            exchange,
            ("all_gather", held, free),
        )
        sent = [
            Collective.of(kind, size, self.size(names)).bytes
            for kind, size, names in sends
            if self.size(names) > 1
        ]
        name = "layer-sharded" if more else "duplicated" if apart else "local"
        work = -(-rows // self.size(more)) * self.flops
        return name, (*own, *more), work, sum(sent), len(sent)
