"""Promises about eight devices: the values of one device, and placement that stays."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optlab import sharding
from optlab.testing import _compare, _subject
from optlab.testing._report import Broken, NotApplicable
from optlab.testing._subject import Subject

DEVICES = 8
AXIS = "devices"
STEPS = 2


def explicit_mesh(subject: Subject) -> str:
    """On a mesh of Explicit axes values equal one device's and placement stays."""
    return _require_same_on_mesh(subject, AxisType.Explicit)


def auto_mesh(subject: Subject) -> str:
    """On a mesh of Auto axes values equal one device's and placement stays."""
    return _require_same_on_mesh(subject, AxisType.Auto)


def sends_no_more_for_more_layers(subject: Subject) -> str:
    """On a mesh twice the layers of a shape send no more often, and none in a loop."""
    if jax.device_count() < DEVICES:
        raise NotApplicable("needs 8 devices, set jax_num_cpu_devices")
    mesh = jax.make_mesh((DEVICES,), (AXIS,))
    tx, step = subject.tx, subject.step
    if subject.row is not None and subject.row.on_mesh is not None:
        tx = subject.build(**subject.row.on_mesh(mesh, AXIS))
        step = subject.step_of(tx)
    fewer, more = (_sent(tx, step, mesh, layers) for layers in (DEVICES, 2 * DEVICES))
    if more.counts != fewer.counts:
        raise Broken(
            f"{DEVICES} layers send {fewer.counts}, {2 * DEVICES} send {more.counts}"
        )
    if more.in_loops:
        raise Broken(f"{more.in_loops} collectives are inside of loops")
    return ", ".join(f"{n:g} {kind}" for kind, n in more.counts.items()) or "nothing"


def _sent(tx: Any, step: Any, mesh: Any, layers: int) -> sharding.Collectives:
    """Counts what a step sends, with equal matrices of which each device has rows."""
    random = np.random.default_rng(0)
    params = {
        f"dense_{i}": {"kernel": random.normal(size=(16, 8)).astype(np.float32)}
        for i in range(layers)
    }
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec(AXIS)))
    with jax.set_mesh(mesh):
        try:
            # Only its layout is needed; one program, see `_walk`.
            state = jax.jit(tx.init)(params)
        except (KeyError, ValueError) as error:
            # A chain for the parameters of one model, and these are others.
            raise NotApplicable(f"does not take other parameters: {error}") from error
        return sharding.collectives(step, params, state, params)


def _require_same_on_mesh(subject: Subject, axis_type: AxisType) -> str:
    if jax.device_count() < DEVICES:
        raise NotApplicable("needs 8 devices, set jax_num_cpu_devices")
    params, specs = _sharded_params(subject)
    grads = [
        jax.tree.map(np.asarray, subject.gradients(k, like=params))
        for k in range(STEPS)
    ]
    wanted = _walk(subject, subject.tx, subject.step, params, grads)
    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(axis_type,))
    tx, step = subject.tx, subject.step
    row = subject.row
    if row is not None and row.on_mesh is not None and subject.factory is not None:
        tx = subject.build(**row.on_mesh(mesh, AXIS))
        # What moves matrices has to be told, on Auto axes, where they are.
        where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        tx = sharding.placed(tx, where)
        step = subject.step_of(tx)

    def place(tree: Any) -> Any:
        return jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
        )

    with jax.set_mesh(mesh):
        got = _walk(subject, tx, step, place(params), [place(g) for g in grads])
        if axis_type == AxisType.Explicit:
            _require_same_types(got[0][1], jax.eval_shape(tx.init, got[0][0]))
        for k in range(STEPS):
            _require_placed(got[k][1], got[k + 1][1], "the state")
            _require_placed(got[0][0], got[k + 1][2], "the update")
    worst, where = 0.0, ""
    for a, b in zip(got[1:], wanted[1:], strict=True):
        worst, where = max((worst, where), _compare.gap(a[2], b[2]))
    split = sum(spec != PartitionSpec() for spec in jax.tree.leaves(specs))
    detail = _compare.require_small(worst, where, subject.tolerance)
    return f"{split} sharded leaves, {detail}"


def _walk(subject: Subject, tx: Any, step: Any, params: Any, grads: list[Any]) -> list:
    """Returns (params, state, updates) at the start and after every gradient."""
    points = [(params, tx.init(params), None)]
    for g in grads:
        # Simulated devices share threads: one program at a time, or they may hang.
        points.append(jax.block_until_ready(step(points[-1][0], points[-1][1], g)))
    return points


def _sharded_params(subject: Subject) -> tuple[Any, Any]:
    """Returns parameters and, for each, a spec that cuts one of its axes.

    The suite's own tree holds each kind of leaf once for every axis that it can be cut
    on. A caller's tree is cut on the first axis of each leaf that eight divides.
    """
    if not subject.own_params:
        specs = jax.tree.map(_first_cut, subject.params)
        if not any(spec != PartitionSpec() for spec in jax.tree.leaves(specs)):
            raise NotApplicable("no axis of the parameters can be cut into 8")
        return subject.params, specs
    kinds = {
        "dense": ("kernel", (16, 8)),
        "layers": ("kernel", (8, 16, 8)),
        "norm": ("scale", (8,)),
        "conv": ("kernel", (3, 1, 8, 16)),
        "temperature": ("scale", ()),
    }
    shapes, specs = {}, {}
    for room, (name, shape) in kinds.items():
        cuts = [axis for axis, size in enumerate(shape) if size % DEVICES == 0]
        for axis in cuts or [None]:
            shapes[f"{room}_{axis}"] = {name: shape}
            specs[f"{room}_{axis}"] = {name: _cut(len(shape), axis)}
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    if subject.row is not None and "attn_max_logit" in subject.row.needs:
        for axis in range(3):
            heads = params[f"attention_{axis}"] = _subject.attention(8, 8, 8)
            specs[f"attention_{axis}"] = jax.tree.map(
                lambda _, a=axis: _cut(3, a), heads
            )
    return params, specs


def _first_cut(x: jax.Array) -> PartitionSpec:
    cuts = [axis for axis, size in enumerate(x.shape) if size and size % DEVICES == 0]
    return _cut(x.ndim, cuts[0] if cuts else None)


def _cut(ndim: int, axis: int | None) -> PartitionSpec:
    if axis is None:
        return PartitionSpec()
    return PartitionSpec(*(AXIS if i == axis else None for i in range(ndim)))


def _require_placed(before: Any, after: Any, what: str) -> None:
    """Checks that every leaf lies where it lay.

    What lay whole on one device may lie whole on all of them: counters do.
    """
    for (path, old), new in zip(
        _compare.leaves(before).items(), jax.tree.leaves(after), strict=True
    ):
        whole = old.sharding.is_fully_replicated and new.sharding.is_fully_replicated
        if whole or new.sharding.is_equivalent_to(old.sharding, new.ndim):
            continue
        raise Broken(
            f"{what} '{path}' moved from {_placement(old)} to {_placement(new)}"
        )


def _require_same_types(eager: Any, traced: Any) -> None:
    """Checks that `init` places a state alike with and without `jax.jit`."""
    for (path, x), y in zip(
        _compare.leaves(eager).items(), jax.tree.leaves(traced), strict=True
    ):
        # An abstract array that is cut nowhere has no sharding at all.
        start = _cuts(jax.typeof(x).sharding.spec)
        inside = _cuts(y.sharding.spec if y.sharding else ())
        if start != inside:
            raise Broken(f"the state '{path}' starts cut {start}, under jit {inside}")


def _cuts(spec: Iterable[Any]) -> dict[int, Any]:
    """Returns the mesh axes by the array axes that they cut."""
    return {axis: name for axis, name in enumerate(spec) if name}


def _placement(x: jax.Array) -> str:
    return str(getattr(x.sharding, "spec", x.sharding))
