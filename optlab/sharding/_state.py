"""Where the state of an optimizer lives: a placement for each of its arrays."""

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
    """How a state rests other than the placement of the parameters says.

    Scalars and random keys always stay as they are.

    Attributes:
      data_axis: ZeRO-1: the optimizer sees every parameter as if it were cut over this
        mesh axis too, on the first axis that divides (a whole one goes first), and its
        state is cut likewise. So are, at rest, arrays that belong to no one parameter.
      stack_axes: Stacks (k, m, n) that belong to no one parameter, such as the factors
        of SOAP, rest cut over k if they are whole otherwise: over as many of these mesh
        axes, from the first on, as divide k.
      memory_kind: Memory in which arrays rest, such as 'pinned_host' for the host.
    """

    data_axis: str | None = None
    stack_axes: str | tuple[str, ...] = ()
    memory_kind: str | None = None

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
    return plan_of("state_shardings", tx, params, param_shardings, policy).shardings()


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
    plan = plan_of("init_sharded", tx, params, param_shardings, policy)
    known, shardings = plan.known, plan.shardings()
    if isinstance(known.mesh, AbstractMesh):
        raise ValueError(
            "init_sharded: the mesh is abstract and holds no arrays;"
            " sharding.state_shardings gives the placement alone"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        here = getattr(leaf, "sharding", None)  # A traced array does not tell.
        if here and leaf.committed and here.device_set != known.devices:
            raise ValueError(
                f"init_sharded: parameter {known.by_path[path].name!r} is on {here},"
                " not on the devices of its sharding; move it with jax.device_put first"
            )

    make: Any = tx.init
    # Told where its results go, `jax.jit` makes new arrays even of what `init` returns
    # as it is, so that parameters and state can both be donated.
    if known.mesh is None:
        return jax.jit(make, out_shardings=shardings)(params)
    # Inside, axes are of the type with which `init` could be traced.
    if plan.error is None and known.mesh.auto_axes:
        specs = (jax.tree.map(lambda s: s.spec, known.shardings(params)),)
        axes = known.mesh.axis_names
        make = jax.sharding.explicit_axes(tx.init, axes=axes, in_sharding=specs)
    elif plan.error is not None and known.mesh.explicit_axes:
        make = jax.sharding.auto_axes(tx.init, out_sharding=shardings)
    with jax.sharding.use_abstract_mesh(known.mesh.abstract_mesh):
        return jax.jit(make, out_shardings=shardings)(params)


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
      'whole' if it is replicated; then what the policy added. If `init` cannot be
      traced with Explicit axes, one more line tells why.

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
    plan = plan_of("explain_state", tx, params, param_shardings, policy)
    lines = [
        f"{trees.path_string(leaf.path)} {leaf.shape}"
        f" {_parameters.spec_of(leaf.at_rest)} {leaf.rule}"
        for leaf in plan.leaves
    ]
    if plan.error is not None:
        lines.append(f"init cannot be traced with Explicit axes: {plan.error!r}")
    return "\n".join(lines)


class Leaf(NamedTuple):
    """One array of a state: how `update` wants it, how it rests, and why.

    It is owned if it is the share of one parameter.
    """

    path: _parameters.Path
    shape: tuple[int, ...]
    cuts: _parameters.Cuts
    rule: str
    owned: bool
    at_rest: _parameters.Cuts
    memory_kind: str | None = None


class Plan(NamedTuple):
    """All arrays of a state.

    Attributes:
      known: The parameters.
      seen: The parameters as the optimizer sees them.
      treedef: Structure of the state.
      leaves: Its arrays.
      error: What `init` raised when it was traced with Explicit axes, or None.
    """

    known: _parameters.Parameters
    seen: _parameters.Parameters
    treedef: Any
    leaves: list[Leaf]
    error: Exception | None

    def shardings(self) -> Any:
        """Returns the tree of shardings at rest."""
        return jax.tree.unflatten(
            self.treedef,
            [self.known.sharding(x.at_rest, x.memory_kind) for x in self.leaves],
        )


def plan_of(
    who: str, tx: Any, params: Any, param_shardings: Any, policy: Policy | None
) -> Plan:
    """Places all arrays of a state; `who` is named by errors."""
    known = _parameters.read(who, params, param_shardings)
    policy = policy or Policy()
    for axis in (*policy.stacks_over, policy.data_axis):
        if axis is not None and axis not in known.axis_sizes:
            raise ValueError(
                f"{who}: the policy names the mesh axis {axis!r}, but the mesh has"
                f" {tuple(known.axis_sizes)}"
            )
    seen = known
    if policy.data_axis is not None:
        seen = known.further(policy.data_axis)
    state, error = _traced(tx, params, seen)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    found = []
    for path, x in leaves:
        leaf = _by_rule(path, x, seen)
        if x.ndim and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            leaf = _by_policy(leaf, policy, known.axis_sizes)
        found.append(leaf)
    return Plan(known, seen, treedef, found, error)


def _traced(
    tx: Any, params: Any, known: _parameters.Parameters
) -> tuple[Any, Exception | None]:
    """Traces `init`, with Explicit axes if it can, and says why not otherwise."""

    def abstract(x: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.result_type(x)
        return jax.ShapeDtypeStruct(jnp.shape(x), dtype, sharding=sharding)

    plain = jax.tree.map(abstract, params)
    if known.mesh is None:
        return jax.eval_shape(tx.init, plain), None
    names = known.mesh.axis_names
    twin = AbstractMesh(
        known.mesh.axis_sizes, names, axis_types=(AxisType.Explicit,) * len(names)
    )
    where = known._replace(mesh=twin).shardings(params)
    try:
        with jax.sharding.use_abstract_mesh(twin):
            return jax.eval_shape(tx.init, jax.tree.map(abstract, params, where)), None
    except Exception as error:  # An init that does not know such axes raises anything.
        failed = error
    return jax.eval_shape(tx.init, plain), failed


def _by_rule(path: _parameters.Path, x: Any, known: _parameters.Parameters) -> Leaf:
    """Places one array by its type, or else by the parameter at the end of its path."""
    cuts: _parameters.Cuts = ((),) * x.ndim
    if x.sharding is not None:
        cuts = _parameters.cuts_of(x.sharding.spec, x.ndim)
    found = None
    for suffix in (path[start:] for start in range(len(path) + 1)):
        if suffix in known.by_path:
            _, shape, param_cuts = known.by_path[suffix]
            found = _like(x.shape, shape, param_cuts)
            # A bare number is also how methods call their stacks of matrices.
            number = all(isinstance(k, jax.tree_util.SequenceKey) for k in suffix)
            if found and number and len(shape) != x.ndim:
                found = None
            break
    rule = "whole"
    if any(cuts):
        rule = "type"
    elif found is not None:
        cuts, rule = found
    return Leaf(path, x.shape, cuts, rule, owned=found is not None, at_rest=cuts)


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


def _by_policy(leaf: Leaf, policy: Policy, sizes: dict[str, int]) -> Leaf:
    """Cuts an array that belongs to no parameter, and says in which memory it rests."""
    cuts, rule = leaf.cuts, leaf.rule
    if rule == "whole" and len(leaf.shape) >= 3 and leaf.shape[0]:
        for count in range(len(policy.stacks_over), 0, -1):
            over = policy.stacks_over[:count]
            if leaf.shape[0] % math.prod(sizes[axis] for axis in over) == 0:
                cuts, rule = (over, *cuts[1:]), f"{rule}, stack"
                break
    if policy.data_axis is not None and not leaf.owned:
        before = cuts
        cuts = _parameters.cut_further(leaf.shape, cuts, policy.data_axis, sizes)
        rule = rule if cuts == before else f"{rule}, data"
    return leaf._replace(at_rest=cuts, rule=rule, memory_kind=policy.memory_kind)
