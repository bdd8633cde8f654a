"""What an optimizer will need on a mesh, before there is one."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from optlab import sharding, trees
from optlab.inspection import _step, _temporaries, _traced

GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class PlannedLeaf:
    """One parameter: where it goes, and what a device holds of it.

    Attributes:
      path: Its path.
      shape: Its whole shape.
      spec: The mesh axes that cut it.
      group: The optimizer that gets it, '' where there is one only.
      bytes: Bytes on one device.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    group: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step of an optimizer needs; see `plan`. All bytes are of one device.

    Attributes:
      mesh: Size of each mesh axis.
      leaves: The parameters.
      parameters: Number of parameters in all.
      parameter_bytes: Bytes of parameters; gradients have as many.
      state_bytes: Bytes of state by group and field, such as 'matrix momentum'.
      temporary_bytes: Bytes beside arguments and results during the update.
      flops: FLOPs of a step, on the device that has most to do.
      decompositions: FLOPs of eigendecompositions, QR and the like, beside those.
      most_flops: Like `flops`, for a step that refreshes all that is refreshed.
      most_decompositions: Like `decompositions`, for such a step.
      collectives: What a device sends, as if all branches were taken.
    """

    mesh: Mapping[str, int]
    leaves: tuple[PlannedLeaf, ...]
    parameters: int
    parameter_bytes: int
    state_bytes: Mapping[str, int]
    temporary_bytes: int
    flops: float
    decompositions: float
    most_flops: float
    most_decompositions: float
    collectives: sharding.Collectives

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(self.mesh.values())

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by what they are for."""
        return {
            "parameters": self.parameter_bytes,
            "gradients": self.parameter_bytes,
            **{f"state: {name}": size for name, size in self.state_bytes.items()},
            "temporaries": self.temporary_bytes,
        }

    def mean_flops(self, every: int) -> float:
        """Returns FLOPs, decompositions too, if every so many steps all is refreshed.

        What is done at the first step alone counts as a refresh as well.

        Args:
          every: Steps between two refreshes.
        """
        usual = self.flops + self.decompositions
        return usual + (self.most_flops + self.most_decompositions - usual) / every

    def routing(self) -> list[tuple[str, int, tuple[int, ...], str, str, int]]:
        """Lists leaves; those that differ in a number of their path are one line.

        Returns:
          Path, how many, shape, group, spec, and bytes of all of them on a device.
        """
        found: dict[tuple, list[int]] = collections.defaultdict(list)
        for leaf in self.leaves:
            path = re.sub(r"\d+", "*", leaf.path)
            found[path, leaf.shape, leaf.group, str(leaf.spec)].append(leaf.bytes)
        return [
            (path, len(sizes), shape, group, spec, sum(sizes))
            for (path, shape, group, spec), sizes in found.items()
        ]

    def __str__(self) -> str:
        """Memory, work, what is sent, and where each parameter goes."""
        axes = " x ".join(f"{name}={size}" for name, size in self.mesh.items())
        total = sum(self.memory.values())
        lines = [
            f"{self.parameters:,} parameters on {self.devices} devices ({axes});"
            " all of one device:"
        ]
        shown = {name: size for name, size in self.memory.items() if size >= 1024}
        for name, size in (*shown.items(), ("in all", total)):
            lines.append(f"  {name:32} {_megabytes(size)} {size / total:7.1%}")
        lines.append(f"  {'FLOPs of the update':32} {self.flops / GIGA:12.3f} G")
        if self.decompositions or self.most_decompositions:
            lines.append(
                f"  {'  of decompositions':32} {self.decompositions / GIGA:12.3f} G"
            )
        if (self.most_flops, self.most_decompositions) != (
            self.flops,
            self.decompositions,
        ):
            most = self.most_flops + self.most_decompositions
            lines.append(f"  {'  both, with all refreshes':32} {most / GIGA:12.3f} G")
        for kind, count in self.collectives.counts.items():
            size = self.collectives.bytes_by_kind[kind]
            lines.append(f"  {f'{count:g} {kind}':32} {_megabytes(size)}")
        if not self.collectives.found:
            lines.append("  no collectives")
        return "\n".join(lines)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:12.3f} MB"


def plan(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any = None,
    *,
    policy: sharding.Policy | None = None,
    extra_args: Mapping[str, Any] | None = None,
    platform: str | None = None,
) -> Plan:
    """Tells what a step of an optimizer will need, without any device.

    The step `updates, state = tx.update(grads, state, params)` and
    `optax.apply_updates(params, updates)`, with parameters and state donated, is traced
    for the mesh with Explicit axes, and its program is read: nothing is allocated and
    nothing is compiled, so models of any size on meshes of any size do.

        state         bytes of `sharding.state_shardings`
        FLOPs         2 for each product of a sum, 1 for each other entry that is made,
                      0 for what is only moved; a loop as often as it runs; of
                      branches the dearest if the device decides, the cheapest if the
                      step does (`most_flops`: the dearest); decompositions by textbook
        collectives   what the program says, in bytes of the ring algorithms
        temporaries   arrays that products, sums, loops, branches and collectives read
                      or make are stored, all else runs with what reads it; they are
                      placed as XLA does, by size or by time, each in the smallest gap

    The temporaries are a model of a compiler: they leave out workspaces of libraries,
    most copies for a change of layout, and any order but the program's. Beside XLA on
    CPU they are mostly within 5 %; Muon's on some decoders are up to 22 % off.

    Args:
      tx: The transformation, made for the mesh: its kernels spread over it. An
        `AbstractMesh` will do for `sharding.over_axis` and `sharding.spread`.
      params: Tree of arrays, or of `jax.ShapeDtypeStruct`.
      param_shardings: As for `sharding.state_shardings`.
      policy: Where the state rests, if other than it is worked on.
      extra_args: What `update` is given beside the parameters: arrays, or abstract
        ones.
      platform: 'cpu', 'gpu' or 'tpu', where kernels differ; None means JAX's default.

    Returns:
      The plan; `print` shows it.

    Raises:
      TypeError: As `sharding.state_shardings`.
      ValueError: As `sharding.state_shardings`; or as `tx`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
      >>> from optlab import inspection, kernels, optimizers, sharding
      >>> mesh = AbstractMesh((64, 4), ("fsdp", "tp"))
      >>> w = jax.ShapeDtypeStruct((64, 4096, 4096), jnp.float32)
      >>> place = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tp"))
      >>> kernel = sharding.over_axis(kernels.newton_schulz, mesh, ("fsdp", "tp"))
      >>> tx = optimizers.muon(0.02, orthogonalize=kernel)
      >>> found = inspection.plan(tx, {"up": {"kernel": w}}, {"up": {"kernel": place}})
      >>> found.state_bytes["momentum"], found.collectives.counts
      (16777216, {'all_to_all': 2})

    Source:
      Written for this library.
    """
    params = _explicit(params, param_shardings)
    where = jax.tree.map(lambda x: x.sharding, params)
    at_rest = sharding.state_shardings(tx, params, where, policy)
    tx = optax.with_extra_args_support(tx)
    if policy is not None:
        tx = sharding.stored(tx, where, policy)
    mesh = jax.tree.leaves(where)[0].mesh

    with jax.sharding.use_abstract_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        state = jax.tree.map(_step.placed, state, at_rest)
        traced = jax.make_jaxpr(_step.step_of(tx))(
            params, state, params, dict(extra_args or {})
        )
    program = _traced.read(traced, platform or jax.default_backend())
    kept = len(jax.tree.leaves((params, state)))
    parameter_bytes = sum(map(_step.share, jax.tree.leaves(params)))
    return Plan(
        mesh=dict(mesh.shape),
        leaves=tuple(_leaves(params, state)),
        parameters=sum(x.size for x in jax.tree.leaves(params)),
        parameter_bytes=parameter_bytes,
        state_bytes=_state_bytes(state),
        temporary_bytes=_temporaries.bytes_needed(program, kept),
        flops=program.total(lambda op: op.flops, least=True),
        decompositions=program.total(lambda op: op.decomposed, least=True),
        most_flops=program.total(lambda op: op.flops),
        most_decompositions=program.total(lambda op: op.decomposed),
        collectives=sharding.Collectives(tuple(program.sends())),
    )


def _explicit(params: Any, shardings: Any) -> Any:
    """Places abstract parameters on a twin of their mesh, with Explicit axes."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: getattr(x, "sharding", None), params)

    def place(x: Any, where: Any) -> jax.ShapeDtypeStruct:
        mesh, spec = AbstractMesh((1,), ("device",)), PartitionSpec()
        if isinstance(where, NamedSharding):
            mesh, spec = where.mesh, where.spec
        types = (AxisType.Explicit,) * len(mesh.axis_names)
        twin = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=types)
        return _step.placed(x, NamedSharding(twin, spec))

    return jax.tree.map(place, params, shardings)


def _state_bytes(state: Any) -> dict[str, int]:
    found: dict[str, int] = collections.defaultdict(int)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        group, field = _group_and_field(path)
        found[f"{group} {field}".strip()] += _step.share(x)
    return dict(found)


def _group_and_field(path: Sequence[Any]) -> tuple[str, str]:
    """Reads the label of a partition and the name of a state's field from a path."""
    named = [
        i
        for i, key in enumerate(path)
        if isinstance(key, jax.tree_util.GetAttrKey)
        and key.name not in ("value", "raw_value")
    ]
    if not named:
        return "", "state"
    labels = (key.key for key in path[: named[-1]] if hasattr(key, "key"))
    return "/".join(map(str, labels)), path[named[-1]].name


def _leaves(params: Any, state: Any) -> list[PlannedLeaf]:
    """Tells for each parameter which group it is in, from the state below its path."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    known, groups = {}, []
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        group, _ = _group_and_field(path)
        groups += [group] * (group not in groups)
        known |= {path[start:]: group for start in range(len(path))}
    # A state of stacks has no paths of parameters: theirs is the group left over.
    own = {known[path] for path in paths if path in known}
    others = [group for group in groups if group not in own and group] or [""]
    return [
        PlannedLeaf(
            path=trees.path_string(path),
            shape=x.shape,
            spec=x.sharding.spec,
            group=known.get(path, others[0]),
            bytes=_step.share(x),
        )
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
