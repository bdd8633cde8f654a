"""Where the state of an optimizer lives: a placement for each of its arrays."""

import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType

from optlab import trees
from optlab.sharding import _parameters


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a state departs from the placement of the parameters.

    Scalars and random keys always stay as they are.

    Attributes:
      data_axis: ZeRO-1: arrays not yet cut over this mesh axis are cut over it, on the
        first axis that divides. One that no other mesh axis cuts goes first.
      stack_axes: Stacks (k, m, n) of factors that belong to no single parameter, such
        as those of SOAP, are cut over k: over as many of these mesh axes, from the
        first on, as divide it.
      memory_kind: Memory of the arrays, such as 'pinned_host' to keep them on the host;
        the step must then bring them to the device and back.
    """

    data_axis: str | None = None
    stack_axes: str | tuple[str, ...] = ()
    memory_kind: str | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that it names."""
        return (*self.stacks_over, *([self.data_axis] if self.data_axis else []))

    @property
    def stacks_over(self) -> tuple[str, ...]:
        """The mesh axes for stacks."""
        if isinstance(self.stack_axes, str):
            return (self.stack_axes,)
        return tuple(self.stack_axes)


def state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any = None,
    policy: Policy | None = None,
) -> Any:
    """Says where each array of a transformation's state belongs.

    Placement is a part of an array's type on meshes with Explicit axes. So `tx.init` is
    traced on such a mesh, whatever the axes of the real one, and the types that come
    out are the answer: a moment lies like its parameter, a factored moment like what is
    left of it, a window of gradients likewise. An array that `init` makes from a bare
    shape has lost its placement; one below the path of a parameter gets it back if its
    shape is the parameter's, the parameter's less one axis, or the parameter's behind
    one more axis. All else is replicated. If `init` cannot be traced with Explicit
    axes, only these rules are used.

    Nothing is allocated; parameters and mesh may be abstract.

    Args:
      tx: Any transformation.
      params: Tree of arrays, or of `jax.ShapeDtypeStruct`.
      param_shardings: Tree like the parameters of `NamedSharding` on one mesh, whose
        axes are all Explicit or all Auto; None to read it from the parameters. All on
        one device is fine too.
      policy: What to do beyond that; None for nothing.

    Returns:
      Tree like the state, of `NamedSharding` on the same mesh.

    Raises:
      TypeError: If a leaf has no sharding with a mesh.
      ValueError: If the trees differ; a spec does not divide its leaf; there are
        several meshes, or one that mixes Auto and Explicit axes; the policy names an
        axis that the mesh does not have.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
      >>> from optlab import sharding
      >>> mesh = AbstractMesh((64, 4), ("data", "model"))
      >>> params = {"w": jax.ShapeDtypeStruct((4096, 1024), jnp.float32)}
      >>> where = {"w": NamedSharding(mesh, PartitionSpec(None, "model"))}
      >>> tx = optax.adam(1e-3)
      >>> sharding.state_shardings(tx, params, where)[0].mu["w"].spec
      P(None, 'model')
      >>> zero1 = sharding.Policy(data_axis="data")
      >>> sharding.state_shardings(tx, params, where, zero1)[0].mu["w"].spec
      P('data', 'model')

    Source:
      Written for this library. ZeRO-1: Rajbhandari et al. 2019, arXiv 1910.02054.
    """
    return _plan("state_shardings", tx, params, param_shardings, policy).shardings()


def init_sharded(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any = None,
    policy: Policy | None = None,
) -> Any:
    """Makes the state of a transformation, each array where it belongs.

    `jax.jit(tx.init)` leaves moments on one device of a mesh with Auto axes, and a bare
    `tx.init` replicates what it makes from shapes. Here no array is ever larger on a
    device than its share, and none shares its memory with a parameter, so that both can
    be donated.

    Args:
      tx: Any transformation.
      params: Tree of arrays.
      param_shardings: As for `state_shardings`.
      policy: As for `state_shardings`.

    Returns:
      `tx.init(params)`, placed as `state_shardings` says.

    Raises:
      TypeError: As `state_shardings`.
      ValueError: As `state_shardings`; if the mesh is abstract; if a parameter is on
        other devices than its sharding.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from optlab import sharding
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> place = NamedSharding(mesh, PartitionSpec("data"))
      >>> params = {"w": jax.device_put(jnp.ones(8), place)}
      >>> sharding.init_sharded(optax.adam(1e-3), params)[0].mu["w"].sharding.spec
      P('data',)

    Source:
      Written for this library.
    """
    plan = _plan("init_sharded", tx, params, param_shardings, policy)
    known, shardings = plan.known, plan.shardings()
    if isinstance(known.mesh, AbstractMesh):
        raise ValueError(
            "init_sharded: the mesh is abstract and holds no arrays;"
            " sharding.state_shardings gives the placement alone"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        committed = isinstance(leaf, jax.Array) and leaf.committed
        if committed and leaf.sharding.device_set != known.devices:
            raise ValueError(
                f"init_sharded: parameter {known.by_path[path].name!r} is on"
                f" {leaf.sharding}, not on the devices of its sharding; move it with"
                " jax.device_put first"
            )

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.copy, tx.init(params))

    if known.mesh is None:
        return jax.jit(init, out_shardings=shardings)(params)
    with jax.sharding.use_abstract_mesh(known.mesh.abstract_mesh):
        if known.mesh.explicit_axes and not plan.typed:
            automatic = jax.sharding.auto_axes(init, out_sharding=shardings)
            return jax.jit(automatic, out_shardings=shardings)(params)
        return jax.jit(init, out_shardings=shardings)(params)


def explain_state(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any = None,
    policy: Policy | None = None,
) -> str:
    """Tells for each array of a state where it belongs, and why.

    Args:
      tx: Any transformation.
      params: As for `state_shardings`.
      param_shardings: As for `state_shardings`.
      policy: As for `state_shardings`.

    Returns:
      One line for each array with path, shape, spec and rule: 'type' if `init` placed
      it, 'parameter', 'factor' or 'window' if it lies like the parameter at its path,
      'whole' if it is replicated; then what the policy added.

    Raises:
      TypeError: As `state_shardings`.
      ValueError: As `state_shardings`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import sharding
      >>> print(sharding.explain_state(optax.trace(0.9), {"w": jnp.ones((2, 3))}))
      trace/w (2, 3) P() parameter

    Source:
      Written for this library.
    """
    plan = _plan("explain_state", tx, params, param_shardings, policy)
    return "\n".join(
        f"{trees.path_string(leaf.path)} {leaf.shape}"
        f" {_parameters.spec_of(leaf.cuts)} {leaf.rule}"
        for leaf in plan.leaves
    )


class _Leaf(NamedTuple):
    """Where one array of the state belongs, and which rule said so."""

    path: _parameters.Path
    shape: tuple[int, ...]
    cuts: _parameters.Cuts
    rule: str
    memory_kind: str | None = None


class _Plan(NamedTuple):
    """All arrays of a state; `typed` if `init` could be traced with Explicit axes."""

    known: _parameters.Parameters
    treedef: Any
    leaves: list[_Leaf]
    typed: bool

    def shardings(self) -> Any:
        return jax.tree.unflatten(
            self.treedef,
            [self.known.sharding(leaf.cuts, leaf.memory_kind) for leaf in self.leaves],
        )


def _plan(
    who: str, tx: Any, params: Any, param_shardings: Any, policy: Policy | None
) -> _Plan:
    known = _parameters.read(who, params, param_shardings)
    policy = policy or Policy()
    sizes = known.axis_sizes
    missing = [axis for axis in policy.axes if axis not in sizes]
    if missing:
        raise ValueError(
            f"{who}: the policy names the axes {missing}, but the mesh has"
            f" {tuple(sizes)}"
        )
    state, typed = _traced(tx, params, known)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    found = []
    for path, x in leaves:
        leaf = _by_rule(path, x, known)
        if x.ndim and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            leaf = _by_policy(leaf, policy, sizes)
        found.append(leaf)
    return _Plan(known, treedef, found, typed)


def _traced(tx: Any, params: Any, known: _parameters.Parameters) -> tuple[Any, bool]:
    """Traces `init`, with Explicit axes if it can, and says whether it could."""

    def abstract(x: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.result_type(x)
        return jax.ShapeDtypeStruct(jnp.shape(x), dtype, sharding=sharding)

    if known.mesh is not None:
        names = known.mesh.axis_names
        twin = AbstractMesh(
            known.mesh.axis_sizes, names, axis_types=(AxisType.Explicit,) * len(names)
        )
        typed = jax.tree_util.tree_map_with_path(
            lambda path, x: abstract(
                x, known._replace(mesh=twin).sharding(known.by_path[path].cuts)
            ),
            params,
        )
        # What an init raises on axes that it does not know can be anything.
        with contextlib.suppress(Exception), jax.sharding.use_abstract_mesh(twin):
            return jax.eval_shape(tx.init, typed), True
    return jax.eval_shape(tx.init, jax.tree.map(abstract, params)), False


def _by_rule(path: _parameters.Path, x: Any, known: _parameters.Parameters) -> _Leaf:
    """Places one array by its type, or else by the parameter at the end of its path."""
    typed = () if x.sharding is None else _parameters.cuts_of(x.sharding.spec, x.ndim)
    if any(typed):
        return _Leaf(path, x.shape, typed, "type")
    for start in range(len(path) + 1):
        suffix = path[start:]
        if suffix in known.by_path:
            _, shape, cuts = known.by_path[suffix]
            found = _like(x.shape, shape, cuts)
            # A bare number is also how methods call their stacks of matrices.
            number = all(isinstance(k, jax.tree_util.SequenceKey) for k in suffix)
            if found and not (number and len(shape) != x.ndim):
                return _Leaf(path, x.shape, *found)
    return _Leaf(path, x.shape, ((),) * x.ndim, "whole")


def _like(
    shape: tuple[int, ...], param: tuple[int, ...], cuts: _parameters.Cuts
) -> tuple[_parameters.Cuts, str] | None:
    """Returns cuts and rule for an array whose path ends like a parameter's."""
    if len(shape) == len(param):
        if all(size in (1, full) for size, full in zip(shape, param, strict=True)):
            kept = zip(shape, param, cuts, strict=True)
            return tuple(c if size == full else () for size, full, c in kept), (
                "parameter"
            )
    if len(shape) + 1 == len(param):
        without = {
            cuts[:i] + cuts[i + 1 :]
            for i in range(len(param))
            if param[:i] + param[i + 1 :] == shape
        }
        # Of a square matrix either axis may be gone: then it stays whole.
        if len(without) == 1:
            return without.pop(), "factor"
    if param and shape[1:] == param:
        return ((), *cuts), "window"
    return None


def _by_policy(leaf: _Leaf, policy: Policy, sizes: dict[str, int]) -> _Leaf:
    """Cuts an array further, and says in which memory it is."""

    def parts(axes: tuple[str, ...]) -> int:
        return math.prod(sizes[axis] for axis in axes)

    cuts, rule = leaf.cuts, leaf.rule
    if rule == "whole" and len(leaf.shape) >= 3:
        for count in range(len(policy.stacks_over), 0, -1):
            over = policy.stacks_over[:count]
            if leaf.shape[0] and leaf.shape[0] % parts(over) == 0:
                cuts, rule = (over, *cuts[1:]), f"{rule}, stack over {', '.join(over)}"
                break
    data = policy.data_axis
    if data is not None and not any(data in cut for cut in cuts):
        sized = zip(leaf.shape, cuts, strict=True)
        shares = [size // parts(cut) for size, cut in sized]
        able = [i for i, n in enumerate(shares) if n and n % sizes[data] == 0]
        if able:
            axis = min(able, key=lambda i: bool(cuts[i]))
            cuts = (*cuts[:axis], (*cuts[axis], data), *cuts[axis + 1 :])
            rule = f"{rule}, axis {axis} over {data}"
    return leaf._replace(cuts=cuts, rule=rule, memory_kind=policy.memory_kind)
