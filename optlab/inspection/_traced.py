"""What one device does in a traced program: its work, and what it sends."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optlab import sharding

# Primitives without arithmetic: they place, cut, join and name numbers. Compilers turn
# a sum with a negative number into a difference.
MOVING = frozenset(
    (
        *("broadcast_in_dim", "reshape", "transpose", "slice", "dynamic_slice"),
        *("concatenate", "pad", "squeeze", "expand_dims", "rev", "gather", "iota"),
        *("copy", "bitcast_convert_type", "stop_gradient", "optimization_barrier"),
        *("split", "dynamic_update_slice", "scatter", "axis_index", "platform_index"),
        *("reshard", "sharding_constraint", "device_put", "pvary", "pcast", "tile"),
        *("random_wrap", "random_unwrap", "empty", "neg"),
    )
)

# What does nothing with a second argument of this value, and is left out.
NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}

# FLOPs of a decomposition of an (m, n) matrix, m >= n, with its vectors: the counts of
# textbooks. Compilers call a library for them and count nothing.
DECOMPOSITIONS: dict[str, Callable[[int, int], float]] = {
    "eigh": lambda m, n: 9 * n**3,
    "svd": lambda m, n: 14 * m * n**2 + 8 * n**3,
    "qr": lambda m, n: 4 * m * n**2 - 4 * n**3 / 3,
    "geqrf": lambda m, n: 2 * m * n**2 - 2 * n**3 / 3,
    "householder_product": lambda m, n: 2 * m * n**2 - 2 * n**3 / 3,
    "cholesky": lambda m, n: n**3 / 3,
    "lu": lambda m, n: m * n**2 - n**3 / 3,
    "triangular_solve": lambda m, n: m * n**2,
}

# Primitives that send, and what a compiled program calls it.
SENDING = {
    "all_to_all": "all_to_all",
    "all_gather": "all_gather",
    "all_gather_invariant": "all_gather",
    "psum": "all_reduce",
    "psum_invariant": "all_reduce",
    "pmax": "all_reduce",
    "pmin": "all_reduce",
    "reduce_scatter": "reduce_scatter",
    "ppermute": "collective_permute",
}


@dataclasses.dataclass(eq=False)
class Value:
    """An array on one device: its shape and its bytes there."""

    shape: tuple[int, ...]
    bytes: int

    @property
    def size(self) -> int:
        """Its number of entries."""
        return math.prod(self.shape)


@dataclasses.dataclass(eq=False)
class Op:
    """One primitive on one device.

    Attributes:
      name: Name of the primitive.
      ins: What it reads.
      outs: What it makes.
      params: What it is told beside them.
      flops: FLOPs, without those of its bodies.
      decomposed: FLOPs of decompositions, which no compiler counts.
      sends: What it sends.
      bodies: Programs inside: of a conditional one of them runs.
      times: How often its body runs.
      by_device: Whether devices choose different bodies.
    """

    name: str
    ins: list[Value]
    outs: list[Value]
    params: dict[str, Any]
    flops: float = 0.0
    decomposed: float = 0.0
    sends: list[sharding.Collective] = dataclasses.field(default_factory=list)
    bodies: "list[Program]" = dataclasses.field(default_factory=list)
    times: float = 1
    by_device: bool = False


@dataclasses.dataclass(eq=False)
class Program:
    """A list of primitives; calls are written out, nothing is there in vain."""

    ins: list[Value]
    outs: list[Value]
    ops: list[Op]

    def total(self, of: Callable[[Op], float], *, least: bool = False) -> float:
        """Sums over all primitives, of branches the largest sum.

        Args:
          of: What a primitive counts, its bodies aside.
          least: Take the smallest sum of branches that all devices choose alike, as
            those that refresh something every k steps.
        """
        whole = 0.0
        for op in self.ops:
            whole += of(op)
            inside = [body.total(of, least=least) for body in op.bodies]
            if inside:
                pick = min if least and not op.by_device else max
                whole += op.times * pick(inside)
        return whole

    def sends(self, times: float = 1, in_loop: bool = False) -> Iterator[Any]:
        """Yields what is sent, as if all branches were taken."""
        for op in self.ops:
            for one in op.sends:
                yield dataclasses.replace(one, times=times, in_loop=in_loop)
            loop = in_loop or op.name in ("scan", "while")
            for body in op.bodies:
                yield from body.sends(times * op.times, loop)


def read(jaxpr: Any, platform: str) -> Program:
    """Reads a closed jaxpr, traced with placements in its types.

    Args:
      jaxpr: What `jax.make_jaxpr` returns.
      platform: Backend on which the program will run.

    Returns:
      What each device does.
    """
    return _Reader(platform).program(jaxpr)


def _value(aval: Any) -> Value:
    """The share of one device in an array of this type."""
    shape = list(getattr(aval, "shape", ()))
    for name, axis in _owners(aval).items():
        shape[axis] //= aval.sharding.mesh.shape[name]
    dtype = getattr(aval, "dtype", None)
    width = getattr(dtype, "itemsize", 0)
    return Value(tuple(shape), width * math.prod(shape))


class _Reader:
    """Reads one jaxpr and those inside."""

    def __init__(self, platform: str):
        self.platform = platform
        self.kept: list[Value] = []  # so that no two values have one id
        self.chosen: dict[int, int] = {}
        self.own: set[int] = set()  # numbers that differ from device to device

    def program(self, closed: Any) -> Program:
        """Reads a jaxpr with arguments of its own."""
        jaxpr = getattr(closed, "jaxpr", closed)
        ins = [_value(v.aval) for v in jaxpr.invars]
        ops: list[Op] = []
        outs = self.inline(jaxpr, ins, ops)
        return Program(ins, outs, _needed(ops, outs))

    def inline(self, jaxpr: Any, ins: list[Value], ops: list[Op]) -> list[Value]:
        """Adds what a jaxpr does to a list, and returns its results."""
        known = dict(zip(jaxpr.invars, ins, strict=True))
        known |= {v: _value(v.aval) for v in jaxpr.constvars}

        def look(v: Any) -> Value:
            # A literal has no name: it is a constant of the program.
            return _value(v.aval) if hasattr(v, "val") else known[v]

        for eqn in jaxpr.eqns:
            given = list(map(look, eqn.invars))
            inner = self.called(eqn, given)
            if inner is None:
                outs = [_value(v.aval) for v in eqn.outvars]
                self.kept += outs
                own = any(id(v) in self.own for v in given)
                if own or eqn.primitive.name == "axis_index":
                    self.own |= {id(v) for v in outs if v.size == 1}
                ops.append(self.op(eqn, given, outs))
            else:
                outs = self.inline(*inner, ops)
            known |= dict(zip(eqn.outvars, outs, strict=True))
        return list(map(look, jaxpr.outvars))

    def called(self, eqn: Any, given: list[Value]) -> tuple[Any, list[Value]] | None:
        """Returns the jaxpr of a plain call and its arguments."""
        if eqn.primitive.name == "cond":
            branch = self.chosen.get(id(given[0]))
            if branch is None:
                return None
            return eqn.params["branches"][branch].jaxpr, given[1:]
        if eqn.primitive.name in ("scan", "while"):
            return None
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if key in eqn.params:
                return getattr(eqn.params[key], "jaxpr", eqn.params[key]), given
        return None

    def op(self, eqn: Any, ins: list[Value], outs: list[Value]) -> Op:
        """Reads one primitive."""
        params = eqn.params
        op = Op(eqn.primitive.name, ins, outs, params)
        if op.name == "platform_index":
            names = params["platforms"]
            own = (i for i, one in enumerate(names) if one and self.platform in one)
            self.chosen[id(outs[0])] = next(own, len(names) - 1)
        elif op.name == "cond":
            op.bodies = [self.program(branch) for branch in params["branches"]]
            op.by_device = id(ins[0]) in self.own
        elif op.name == "scan":
            op.bodies, op.times = [self.program(params["jaxpr"])], params["length"]
        elif op.name == "while":
            # How often is not known before it runs; it counts once.
            op.bodies = [self.program(params["body_jaxpr"])]
        elif op.name in DECOMPOSITIONS:
            *batch, m, n = ins[0].shape
            m = ins[1].shape[-1] if op.name == "triangular_solve" else m
            count = DECOMPOSITIONS[op.name](max(m, n), min(m, n))
            op.decomposed = math.prod(batch) * count
        else:
            op.flops, op.sends = _flops(op, eqn), _sends(op, eqn)
        return op


def _needed(ops: list[Op], outs: Sequence[Value]) -> list[Op]:
    """Leaves out what nobody reads."""
    wanted, kept = set(map(id, outs)), []
    for op in reversed(ops):
        if any(id(v) in wanted for v in op.outs):
            wanted |= set(map(id, op.ins))
            kept.append(op)
    return kept[::-1]


def _is(v: Any, number: int) -> bool:
    """Whether an argument is this constant."""
    constant = getattr(v, "val", None)
    return constant is not None and not v.aval.shape and constant == number


def _flops(op: Op, eqn: Any) -> float:
    """One FLOP for each entry that arithmetic makes, two for each product of a sum."""
    name, params = op.name, eqn.params
    if name in MOVING or not op.outs:
        return 0.0
    out = op.outs[0].size
    if name in NEUTRAL and _is(eqn.invars[1], NEUTRAL[name]):
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * out * math.prod(op.ins[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        kernel = op.ins[1]
        return 2.0 * out * kernel.size / kernel.shape[numbers.rhs_spec[0]]
    if name.startswith(("reduce", "arg", "cum")):
        return float(op.ins[0].size)
    if name == "integer_pow":
        return float(out * (abs(params["y"]).bit_length() - 1))
    if name == "sort":
        return float(out * max(1, math.log2(max(2, op.outs[0].shape[-1]))))
    return float(out)


def _sends(op: Op, eqn: Any) -> list[sharding.Collective]:
    """What a primitive makes a device send: said by itself, or by its placements."""
    if not op.ins or not op.outs:
        return []
    where = getattr(eqn.invars[0].aval, "sharding", None)
    sizes = {} if where is None else dict(where.mesh.shape)
    params, found = eqn.params, []
    if op.name in SENDING:
        names = _names(params.get("axis_name", params.get("axes")))
        found = [(SENDING[op.name], names, v.bytes) for v in op.outs]
    elif op.name == "reshard":
        before, after = (_owners(v.aval) for v in (eqn.invars[0], eqn.outvars[0]))
        gone = tuple(name for name in before if name not in after)
        moved = tuple(n for n in before if after.get(n, before[n]) != before[n])
        whole = op.ins[0].bytes * math.prod(sizes[name] for name in gone)
        found = [("all_to_all", moved, op.ins[0].bytes), ("all_gather", gone, whole)]
    else:
        summed = ()
        if op.name.startswith("reduce_") and "axes" in params:
            summed = params["axes"]
        elif op.name == "dot_general":
            summed = params["dimension_numbers"][0][0]
        if summed:
            cut = _owners(eqn.invars[0].aval).items()
            over = tuple(name for name, axis in cut if axis in summed)
            found = [("all_reduce", over, op.outs[0].bytes)]
    groups = ((kind, math.prod(sizes[n] for n in names), b) for kind, names, b in found)
    return [sharding.Collective.of(kind, b, g) for kind, g, b in groups if g > 1]


def _names(names: Any) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else names or ()
    return tuple(name for name in names if isinstance(name, str))


def _owners(aval: Any) -> dict[str, int]:
    """For each mesh axis that cuts an array the axis of the array."""
    where = getattr(aval, "sharding", None)
    spec = () if where is None else where.spec
    return {name: axis for axis, cut in enumerate(spec) for name in _names(cut)}
