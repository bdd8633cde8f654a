"""From what is done to stacks of matrices to a transformation of a tree."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optlab import trees
from optlab.links import _arrays

Stacks = list[jax.Array]
Complaint = Callable[[int, int], str | None]


def on_stacks(
    who: str,
    state_type: Any,
    init: Callable[[list[jax.ShapeDtypeStruct]], Sequence[Any]],
    update: Callable[[Stacks, Any, Stacks], tuple[Sequence[jax.Array], Sequence[Any]]],
    *,
    views: Any = trees.matrix_views,
    joined: bool = True,
    over: Any = None,
    complaint: Complaint = lambda m, n: None,
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation of a tree from what is done to stacks of its matrices.

    For methods whose state belongs to matrices, not to leaves. Gradients are widened to
    float32; updates leave in their own dtype. On a mesh either every device sees whole
    stacks and keeps the whole state, or, with `over`, some rows of them and the state
    of these; updates go back to where the gradients lie.

    Args:
      who: Name of the method, for errors.
      state_type: NamedTuple of `count` (updates so far) and the fields below.
      init: From the shape of every stack, (k, m, n) fan-in by fan-out, one for each
        matrix shape, to the fields of the first state: arrays with k rows, or scalars.
      update: From the stacks of gradients, the state, and the place of each row in its
        whole stack, to stacks of updates and the fields of the next state. It treats
        each row apart from the others.
      views: As for `trees.tensor_stacks`.
      joined: False to get a stack of each leaf, in their order.
      over: What `sharding.spread` makes, or None.
      complaint: Says what is wrong with matrices of shape (m, n), or None.

    Returns:
      The transformation. A tree without leaves has a zero for each field.

    Raises:
      ValueError: If a leaf is no matrix, or there is a complaint about it; matrices
        without entries have none.

    Example:
      >>> from typing import NamedTuple
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> class Sums(NamedTuple):
      ...     count: jnp.ndarray
      ...     sums: tuple
      >>> def add(stacks, state, places):
      ...     sums = tuple(a + b for a, b in zip(state.sums, stacks))
      ...     return sums, [sums]
      >>> def zeros(shapes):
      ...     return [tuple(jnp.zeros(x.shape) for x in shapes)]
      >>> tx = links.on_stacks("sums", Sums, zeros, add)
      >>> g = {"up": {"kernel": jnp.ones((2, 3))}}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> state.sums[0].shape
      (1, 2, 3)

    Source:
      Written for this library.
    """

    def stacked(tree: Any) -> tuple[Stacks, Callable[..., Any], list[Any]]:
        return trees.stacks_with_places(
            who, tree, views, joined=joined, whole=over is None
        )

    def shapes(params: optax.Params) -> list[jax.ShapeDtypeStruct]:
        def stacks(params: optax.Params) -> Stacks:
            return spread_rows(stacked(_arrays.widen(params))[0], over)

        # Their shapes alone: what is made of them lies on every device alike.
        return [
            jax.ShapeDtypeStruct(x.shape, x.dtype)
            for x in jax.eval_shape(stacks, params)
        ]

    def first(params: optax.Params) -> Any:
        count = jnp.zeros((), jnp.int32)
        if not jax.tree.leaves(params):
            # So asks `optax.tree.map_params`, too, to which a leaf stands for buffers
            # not shaped like parameters; an empty tuple would not.
            return state_type(count, *(jnp.zeros(()) for _ in state_type._fields[1:]))
        if not isinstance(views, str):
            _refuse(who, params, views, complaint)
        fields = tuple(init(shapes(params)))
        return state_type(count, *(fields if over is None else over.kept(fields)))

    def step(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        count = jnp.asarray(optax.safe_increment(state.count))
        if not jax.tree.leaves(updates):
            return updates, state._replace(count=count)
        stacks, restore, places = stacked(_arrays.widen(updates))
        places = list(map(jnp.asarray, places))
        if over is None:
            changed, fields = update(stacks, state, places)
            fields = trees.gathered(tuple(fields))
        else:
            changed, fields = _spread(over, update, stacks, places, state)
        out = jax.tree.map(lambda o, u: o.astype(u.dtype), restore(changed), updates)
        return out, state_type(count, *fields)

    return optax.GradientTransformationExtraArgs(first, step)


def spread_rows(stacks: Stacks, over: Any) -> Stacks:
    """Gives stacks, whose values do not matter, the rows that they have when spread.

    Args:
      stacks: Arrays of shape (k, ...).
      over: What `sharding.spread` makes, or None.

    Returns:
      Zeros with as many rows as `over` pads to; without it the stacks.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> links.spread_rows([jnp.ones((3, 2, 2))], None)[0].shape
      (3, 2, 2)

    Source:
      Written for this library.
    """
    if over is None:
        return stacks
    return [jnp.zeros((over.rows(x), *x.shape[1:]), x.dtype) for x in stacks]


def on_each(
    kernel: Callable[[jax.Array], jax.Array], stacks: Stacks
) -> list[jax.Array]:
    """Applies a kernel to each stack; one for a mesh is given all of them at once.

    Args:
      kernel: Maps (k, m, n) to (k, m, n), or what `sharding.over_axis` made of such
        a kernel. It never sees a stack without entries.
      stacks: Arrays of shape (k, m, n).

    Returns:
      The results.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> links.on_each(jnp.negative, [jnp.ones((1, 1, 1)), jnp.ones((0, 2, 2))])[0]
      Array([[[-1.]]], dtype=float32)

    Source:
      Written for this library.
    """
    full = [x for x in stacks if x.size]
    each = getattr(kernel, "each", lambda stacks: map(kernel, stacks))
    results = iter(each(full))
    return [next(results) if x.size else x for x in stacks]


def _spread(
    over: Any, update: Callable[..., Any], stacks: Stacks, places: Stacks, state: Any
) -> tuple[list[jax.Array], Sequence[Any]]:
    """Runs an update on every device with its own rows, their places and state."""
    many = len(stacks)

    def run(arrays: Stacks, state: Any) -> tuple[list[Any], Any]:
        changed, fields = update(arrays[:many], state, arrays[many:])
        # Places go there, and nothing of them comes back.
        return [*changed, *(None for _ in places)], type(state)(state.count, *fields)

    cut = map(_cut_like_rows, places, stacks)
    ranks = [*(x.ndim for x in stacks), *(None for _ in places)]
    found, state = over(run, [*stacks, *cut], state, ranks=ranks)
    return found[:many], state[1:]


def _cut_like_rows(place: jax.Array, stack: jax.Array) -> jax.Array:
    sharding = jax.typeof(stack).sharding
    rows = PartitionSpec(*sharding.spec[:1])
    return (
        jax.reshard(place, NamedSharding(sharding.mesh, rows)) if any(rows) else place
    )


def _refuse(who: str, params: optax.Params, views: Any, complaint: Complaint) -> None:
    """Raises with the first leaf whose matrices there is a complaint about."""
    found = trees.leaf_views(who, params, views)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), view in zip(leaves, found, strict=True):
        bare = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for stack in jax.eval_shape(lambda x, v=view: trees.to_matrices(x, v), bare):
            words = complaint(*stack.shape[1:]) if stack.size else None
            if words:
                name = trees.path_string(path)
                raise ValueError(
                    f"{who}: leaf {name!r} has shape {leaf.shape}; {words}"
                )
