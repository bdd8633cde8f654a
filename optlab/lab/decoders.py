"""Decoders of any size, described by a few numbers, that nobody allocates."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optlab import trees
from optlab.lab import settings

# What tensor parallelism cuts of a (in, out) kernel, by role: what reads the residual
# stream gets its columns cut, what writes to it its rows, an embedding its words.
COLUMNS = ("query", "key", "value", "gate", "up", "head")
ROWS = ("out", "down", "embed")

Rules = Sequence[tuple[str, PartitionSpec]]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer with grouped queries and gated feed-forward layers.

    Attributes:
      layers: Number of layers.
      d_model: Width of the residual stream.
      heads: Heads of queries; they divide d_model.
      kv_heads: Heads of keys and values; they divide heads.
      d_ff: Width of the feed-forward layers.
      vocab: Number of words.
      tied: Whether the embedding is the head as well.
      scanned: Whether the layers are one, with an axis of layers in front.
    """

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ff: int
    vocab: int
    tied: bool = False
    scanned: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = bool if field.name in ("tied", "scanned") else int
            if type(value) is not wanted or (wanted is int and value < 1):
                kind = "true or false" if wanted is bool else "a whole number above 0"
                raise ValueError(f"decoder: {field.name} must be {kind}, got {value}")
        for part, whole in (("heads", "d_model"), ("kv_heads", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"decoder: {part}={getattr(self, part)} does not divide"
                    f" {whole}={getattr(self, whole)}"
                )

    def params(self) -> dict[str, Any]:
        """Returns the tree of its parameters, `jax.ShapeDtypeStruct` in float32.

        >>> PRESETS["8B"].params()["layer_0"]["attention"]["key"]["kernel"].shape
        (4096, 1024)
        """
        d, kv = self.d_model, self.d_model // self.heads * self.kv_heads
        kernels = {
            "attention": {
                "query": (d, d),
                "key": (d, kv),
                "value": (d, kv),
                "out": (d, d),
            },
            "mlp": {
                "gate": (d, self.d_ff),
                "up": (d, self.d_ff),
                "down": (self.d_ff, d),
            },
        }
        front = (self.layers,) if self.scanned else ()

        def leaf(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.float32)

        layer: dict[str, Any] = {
            part: {
                name: {"kernel": leaf(*front, *shape)} for name, shape in own.items()
            }
            for part, own in kernels.items()
        }
        layer |= {
            f"{part}_norm": {"scale": leaf(*front, d)} for part in ("attention", "mlp")
        }
        tree = {"embed": {"embedding": leaf(self.vocab, d)}, "norm": {"scale": leaf(d)}}
        if not self.tied:
            tree["head"] = {"kernel": leaf(d, self.vocab)}
        if self.scanned:
            return {**tree, "layers": layer}
        return {**tree, **{f"layer_{i}": layer for i in range(self.layers)}}


PRESETS = {
    "125M": Decoder(12, 768, 12, 12, 2048, 50304, tied=True),
    "1B": Decoder(16, 2048, 32, 8, 8192, 128256, tied=True),
    "8B": Decoder(32, 4096, 32, 8, 14336, 128256),
}


def read(text: str) -> Decoder:
    """Reads a decoder from its text.

    >>> read("decoder:8B,layers=2,scanned=true").layers
    2

    Args:
      text: decoder:PRESET[,key=value,...], or decoder:key=value,... with all of the
        numbers.

    Returns:
      The decoder.

    Raises:
      ValueError: If the text cannot be read, or the numbers do not fit.
    """
    kind, colon, rest = text.partition(":")
    if kind != "decoder" or not colon:
        raise ValueError(
            f"model '{text}': write decoder:PRESET with one of {', '.join(PRESETS)}, or"
            " decoder:layers=2,d_model=64,heads=4,kv_heads=2,d_ff=256,vocab=512"
        )
    first, *pairs = rest.split(",")
    start: dict[str, Any] = {}
    if "=" in first:
        pairs = [first, *pairs]
    elif first in PRESETS:
        start = dataclasses.asdict(PRESETS[first])
    else:
        raise ValueError(
            f"model '{text}': {settings.unknown('preset', first, PRESETS)}"
        )
    known = {field.name: field for field in dataclasses.fields(Decoder)}
    for pair in pairs:
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if key not in known:
            raise ValueError(f"model '{text}': {settings.unknown('key', key, known)}")
        start[key] = settings.read(key, value) if equals and value else None
    lacking = [
        name
        for name, field in known.items()
        if name not in start and field.default is dataclasses.MISSING
    ]
    if lacking:
        raise ValueError(f"model '{text}': {', '.join(lacking)} is missing")
    return Decoder(**start)


def places(params: Any, sizes: Mapping[str, int], rules: Rules = ()) -> Any:
    """Says how the parameters of a decoder are cut over a mesh.

    Axis 'tp' cuts kernels by their role, see `COLUMNS` and `ROWS`; axis 'fsdp' the
    largest axis left that it divides, the axis of layers aside; 'data' none. Vectors
    stay whole.

    >>> places(PRESETS["8B"].params(), {"fsdp": 8, "tp": 4})["embed"]["embedding"]
    P('tp', 'fsdp')

    Args:
      params: Tree as `Decoder.params` makes it.
      sizes: Size of each mesh axis.
      rules: Pairs of a regular expression, searched in the path, and a spec that goes
        before; the first that is found counts.

    Returns:
      Tree of specs.

    Raises:
      ValueError: If a kernel does not divide.
    """

    def place(key_path: Any, leaf: Any) -> PartitionSpec:
        path = trees.path_string(key_path)
        own = given(path, leaf.shape, sizes, rules)
        return _by_role(path, leaf.shape, sizes) if own is None else own

    return jax.tree_util.tree_map_with_path(place, params)


def given(
    path: str, shape: tuple[int, ...], sizes: Mapping[str, int], rules: Rules
) -> PartitionSpec | None:
    """Returns the spec that rules give a leaf, or None.

    Args:
      path: Path of the leaf.
      shape: Its shape.
      sizes: Size of each mesh axis.
      rules: As for `places`.

    Raises:
      ValueError: If the spec does not fit.
    """
    for pattern, spec in rules:
        if re.search(pattern, path):
            return _checked(path, shape, spec, sizes)
    return None


def _by_role(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]):
    *_, role, name = path.split("/")
    if name == "scale":
        return PartitionSpec()
    owners: list[str | None] = [None] * len(shape)
    if "tp" in sizes:
        owners[-1 if role in COLUMNS else -2] = "tp"
    if "fsdp" in sizes:
        left = [i for i in (len(shape) - 2, len(shape) - 1) if owners[i] is None]
        able = [i for i in left if shape[i] % sizes["fsdp"] == 0] or left
        owners[max(able, key=shape.__getitem__)] = "fsdp"
    return _checked(path, shape, PartitionSpec(*owners), sizes)


def _checked(
    path: str, shape: tuple[int, ...], spec: PartitionSpec, sizes: Mapping[str, int]
) -> PartitionSpec:
    """Returns a spec, unless it does not fit its leaf and the mesh."""
    who = f"leaf '{path}' of shape {shape}"
    if len(spec) > len(shape):
        raise ValueError(f"{who} has fewer axes than {spec}")
    for axis, entry in enumerate(spec):
        names = jax.tree.leaves([entry])
        for name in names:
            if name not in sizes:
                raise ValueError(
                    f"{who} is placed over {name!r}; the mesh has {', '.join(sizes)}"
                )
        if shape[axis] % math.prod(sizes[name] for name in names):
            over = " x ".join(f"{name}={sizes[name]}" for name in names)
            raise ValueError(
                f"{who}: {shape[axis]} does not divide over {over}; choose another"
                f" mesh, or place it with --place '{path}=...'"
            )
    return spec
