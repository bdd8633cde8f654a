"""What a training step will need on a mesh: `optlab plan`."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from optlab import inspection, sharding, trees
from optlab.lab import chains, decoders, placement, workloads

# Arguments beside the gradients of which a plan cannot make abstract ones.
SHAPELESS = ("value_fn", "loss_fn", "layer_stats", "noise_pair", "attn_max_logit")


@dataclasses.dataclass(frozen=True)
class Model:
    """An abstract model.

    Attributes:
      name: How it was asked for.
      params: Tree of `jax.ShapeDtypeStruct` with shardings.
      tokens: Tokens, or images, of a step, over all devices.
    """

    name: str
    params: Any
    tokens: int

    @property
    def mesh(self) -> Any:
        """The mesh."""
        return jax.tree.leaves(self.params)[0].sharding.mesh

    @property
    def flops(self) -> float:
        """6 N FLOPs for each token, of one device.

        N counts what has two or more axes, but not an embedding, from which rows are
        read, unless it is tied: then it is the head as well.
        """
        leaves = {
            trees.path_string(path): leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)
            if leaf.ndim > 1
        }
        read = [path for path in leaves if "embed" in path]
        has_head = any("head" in path.split("/") for path in leaves)
        products = sum(leaves.values()) - has_head * sum(leaves[path] for path in read)
        return 6.0 * products * self.tokens / math.prod(self.mesh.shape.values())


def model(
    text: str | None,
    workload: str,
    mesh: str | None,
    *,
    size: str = "default",
    tokens: int | None = None,
    rules: Sequence[str] = (),
) -> Model:
    """Makes an abstract model on an abstract mesh.

    Args:
      text: As for `decoders.read`, or None for the model of a workload, which is placed
        as `optlab train` does.
      workload: The workload.
      mesh: As for `placement.read_axes`; None means one device.
      size: Size of the workload.
      tokens: Tokens of a step; None means those of the workload, or 2^19.
      rules: PATTERN=ENTRY,... with a mesh axis, several joined by '+', or '-' for
        none, for each axis of the leaves whose path the pattern is found in.

    Returns:
      The model.

    Raises:
      ValueError: If a text cannot be read, or the mesh does not divide a leaf.
      LabError: If the workload is unknown.
    """
    sizes = placement.read_axes(mesh) if mesh else {"data": 1}
    found = [_rule(rule) for rule in rules]
    if text is not None:
        params = decoders.read(text).params()
        specs = decoders.places(params, sizes, found)
        name, own = text, 2**19
    else:
        made = workloads.get(workload, size=size)
        params = nnx.state(
            nnx.eval_shape(functools.partial(made.make_model, 0)), nnx.Param
        )
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        specs = _as_trained(params, sizes, found)
        name, own = made.name, made.tokens_per_step
    on = AbstractMesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Explicit,) * len(sizes),
    )
    params = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(on, spec)
        ),
        params,
        specs,
    )
    return Model(name, params, tokens or own)


def _as_trained(params: Any, sizes: dict[str, int], rules: decoders.Rules) -> Any:
    def place(path: Any, leaf: Any) -> PartitionSpec:
        name = trees.path_string(path)
        given = decoders.given(name, leaf.shape, sizes, rules)
        return placement.divided(leaf.shape, sizes) if given is None else given

    return jax.tree_util.tree_map_with_path(place, params)


def _rule(text: str) -> tuple[str, PartitionSpec]:
    pattern, equals, entries = text.rpartition("=")
    if not (equals and pattern and entries):
        raise ValueError(
            f"place '{text}': write PATTERN=ENTRY,... as in 'embed=tp,fsdp' or"
            " 'attention=-,fsdp+tp'"
        )
    spec = [None if e == "-" else tuple(e.split("+")) for e in entries.split(",")]
    return pattern, PartitionSpec(*spec)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step needs, what dominates, and which way each stack would best go.

    Attributes:
      optimizer: The optimizer's text.
      model: The model.
      plan: Memory, work and collectives of the optimizer.
      every: Steps between two refreshes; 1 if there is nothing to refresh.
      choices: For each stack of equal matrices the ways over the mesh.
      hardware: Speeds.
      measured: What the compiled step needs, or None.
    """

    optimizer: str
    model: Model
    plan: inspection.Plan
    every: int
    choices: tuple[sharding.Choice, ...]
    hardware: sharding.Hardware
    measured: inspection.Measured | None = None

    @property
    def flops(self) -> float:
        """FLOPs of the optimizer on one device, decompositions too, mean of steps."""
        return self.plan.mean_flops(self.every)

    def seconds(self) -> dict[str, float]:
        """Seconds of a step on the hardware, by what they go to."""
        hardware, sent = self.hardware, self.plan.collectives
        count = sum(sent.counts.values())
        return {
            "model": hardware.seconds(self.model.flops, 0, 0),
            "optimizer: work": hardware.seconds(self.flops, 0, 0),
            "optimizer: sending": hardware.seconds(0, sent.bytes, count),
        }

    def compared(self) -> dict[str, tuple[float, float]]:
        """Returns what is planned and what is measured, by what it is."""
        plan, counted = self.plan, self.measured
        if counted is None:
            return {}
        return {
            "bytes of state": (sum(plan.state_bytes.values()), counted.state_bytes),
            "bytes of temporaries": (plan.temporary_bytes, counted.temporary_bytes),
            # Compilers count the dearest of branches.
            "FLOPs with all refreshes": (plan.most_flops, counted.flops),
            "bytes sent": (plan.collectives.bytes, counted.collectives.bytes),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        plan, sent = self.plan, self.plan.collectives
        routing = ("path", "leaves", "shape", "group", "spec", "bytes")
        found = {
            "optimizer": self.optimizer,
            "model": self.model.name,
            "mesh": dict(plan.mesh),
            "devices": plan.devices,
            "parameters": plan.parameters,
            "tokens": self.model.tokens,
            "bytes_per_device": plan.memory,
            "flops_per_device": {
                "model": self.model.flops,
                "optimizer": plan.flops,
                "optimizer_decompositions": plan.decompositions,
                "optimizer_most": plan.most_flops,
                "optimizer_most_decompositions": plan.most_decompositions,
                "optimizer_mean": self.flops,
            },
            "collectives": {
                kind: {"count": count, "bytes": sent.bytes_by_kind[kind]}
                for kind, count in sent.counts.items()
            },
            "seconds": self.seconds(),
            "hardware": dataclasses.asdict(self.hardware),
            "ways": [
                {
                    "stack": choice.shape,
                    "spec": str(choice.spec),
                    "ways": [dataclasses.asdict(way) for way in choice.ways],
                }
                for choice in self.choices
            ],
            "routing": [dict(zip(routing, row, strict=True)) for row in plan.routing()],
        }
        if self.measured is not None:
            found["measured"] = dataclasses.asdict(self.measured)
            found["measured"]["collectives"] = self.measured.collectives.counts
            found["measured"]["collective_bytes"] = self.measured.collectives.bytes
        return found


def make(
    optimizer: str,
    on: Model,
    *,
    hardware: sharding.Hardware | None = None,
    every: int | None = None,
    measure: bool = False,
) -> Report:
    """Plans a step.

    Args:
      optimizer: NAME[:key=value,...], as in a chain.
      on: The model.
      hardware: Speeds; None means the defaults.
      every: Steps between two whole steps of the block-periodic way; None leaves it
        out.
      measure: Whether to compile the step and count there as well; needs as many
        devices as the mesh has.

    Returns:
      The report.

    Raises:
      ValueError: If the optimizer is unknown, or needs what a plan cannot give; if
        there are too few devices to measure.
    """
    text = f"{optimizer}+constant"
    try:
        chain = chains.parse(text)
        tx, _ = chain.build(1, mesh=on.mesh)
        alone, _ = chain.build(1)
    except chains.ChainError as error:
        said = str(error).replace(f"chain '{text}'", f"optimizer '{optimizer}'")
        raise ValueError(said) from None
    row = chain.optimizer.row
    absent = [need for need in row.needs if need in SHAPELESS]
    if absent:
        raise ValueError(
            f"optimizer '{optimizer}': its update calls {' and '.join(absent)}, which"
            " a plan does not have"
        )
    plan = inspection.plan(tx, on.params, extra_args=_extra(row.needs, on.params))
    refresh = _every(chain)
    choices = []
    for stack in _stacks(on, plan) if row.on_mesh is not None else ():
        cost = functools.partial(_one_matrix, alone, row.needs, refresh)
        block = stack.sharding.shard_shape(stack.shape)[1:]
        choices.append(
            sharding.cheapest(
                stack.shape,
                stack.sharding.spec,
                on.mesh,
                flops=cost(*stack.shape[1:]),
                every=every,
                block_flops=None if every is None else cost(*block),
                hardware=hardware,
            )
        )
    measured = None
    if measure:
        measured = _measured(chain, on)
    return Report(
        optimizer,
        on,
        plan,
        refresh,
        tuple(choices),
        hardware or sharding.Hardware(),
        measured,
    )


def _extra(needs: Sequence[str], params: Any) -> dict[str, Any]:
    """Makes abstract arguments for what an update needs beside gradients."""
    known = {
        "value": jax.ShapeDtypeStruct((), jnp.float32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "grad": params,
        "hessian_diag": params,
    }
    return {need: known[need] for need in needs}


def _every(chain: chains.Chain) -> int:
    """Reads how often an optimizer refreshes what it does not do at every step."""
    parameter = inspect.signature(chain.optimizer.row.build).parameters.get("every")
    given = chain.explicit(1).optimizer.settings
    default = 1 if parameter is None else parameter.default
    value = given.get("every", default)
    return value if isinstance(value, int) else 1


def _stacks(on: Model, plan: inspection.Plan) -> list[Any]:
    """Returns the stacks of equal matrices, abstract and with their placements."""
    rest = {leaf.path for leaf in plan.leaves if leaf.group == "rest"}
    views = trees.matrix_views(on.params)
    matrices = {
        trees.path_string(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(on.params)
    }
    known = {
        trees.path_string(path): view
        for path, view in jax.tree_util.tree_leaves_with_path(views)
        if view is not None
    }
    matrices = {p: x for p, x in matrices.items() if p in known and p not in rest}
    known = {path: known[path] for path in matrices}

    def stacked(tree: Any) -> list[jax.Array]:
        return trees.matrix_stacks("plan", tree, known, resharding=True)[0]

    with jax.sharding.use_abstract_mesh(on.mesh):
        return jax.eval_shape(stacked, matrices)


def _one_matrix(tx: Any, needs: Sequence[str], every: int, m: int, n: int) -> float:
    """FLOPs of the optimizer for a single matrix, mean of steps."""
    params = {"layer": {"kernel": jax.ShapeDtypeStruct((m, n), jnp.float32)}}
    plan = inspection.plan(tx, params, extra_args=_extra(needs, params))
    return plan.mean_flops(every)


def _measured(chain: chains.Chain, on: Model) -> inspection.Measured:
    wanted = math.prod(on.mesh.shape.values())
    if jax.device_count() < wanted:
        raise ValueError(
            f"to compile, {wanted} devices are needed, there are {jax.device_count()};"
            " simulate them: JAX_PLATFORMS=cpu"
            f" XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        )
    mesh = jax.make_mesh(
        on.mesh.axis_sizes, on.mesh.axis_names, devices=jax.devices()[:wanted]
    )
    where = jax.tree.map(lambda x: NamedSharding(mesh, x.sharding.spec), on.params)
    tx, _ = chain.build(1, mesh=mesh)
    extra = _extra(chain.optimizer.row.needs, on.params)
    return inspection.measure(tx, on.params, where, extra_args=extra)
