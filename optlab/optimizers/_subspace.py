"""What low-memory optimizers share: whole stacks, sides of a matrix, Adam's moments."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import kernels, links, trees

SIDES = ("short", "long", "in", "out", "both")

# (..., m, n), rank -> orthonormal (..., m, rank)
Basis = Callable[[jax.Array, int], jax.Array]
Bases = tuple[jax.Array | None, jax.Array | None]


def on_whole_matrices(
    who: str,
    views: Any,
    state_type: Any,
    init: Callable[[list[Any]], tuple[Any, ...]],
    update: Callable[[list[jax.Array], Any], tuple[list[jax.Array], tuple[Any, ...]]],
    complaint: Callable[[int, int], str | None] = lambda m, n: None,
    joined: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation of a tree from what is done to stacks of its matrices.

    For methods whose state is small and not shaped like the parameters. On a mesh every
    device sees whole matrices and keeps the whole state; updates go back to where the
    gradients lie. Gradients are widened to float32; updates leave in their own dtype.

    Args:
      who: Name of the method, for errors.
      views: As for `trees.leaf_views`; a leaf that is no matrix raises.
      state_type: NamedTuple of `count` (updates so far) and the fields below.
      init: From `jax.ShapeDtypeStruct` of every stack, (k, m, n) fan-in by fan-out, one
        for each matrix shape, to the fields of the first state.
      update: From the stacks of gradients and the state to stacks of updates and the
        fields of the next state.
      complaint: Says what is wrong with matrices of shape (m, n), or None.
      joined: False to get a stack of each leaf, in their order.

    Returns:
      The transformation. A tree without matrices has a zero for each field.

    Raises:
      ValueError: If there is a complaint about a leaf; matrices without entries have
        none.
    """
    stacked = functools.partial(trees.tensor_stacks, who, views=views, joined=joined)

    def first(params: optax.Params) -> Any:
        count = jnp.zeros((), jnp.int32)
        if not jax.tree.leaves(params):
            # So asks `optax.tree.map_params`, too, to which a leaf stands for buffers
            # not shaped like parameters; an empty list would not.
            return state_type(count, *(jnp.zeros(()) for _ in state_type._fields[1:]))
        shapes = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), links.widen(params)
        )
        _refuse(who, shapes, views, complaint)

        def stacks() -> list[jax.Array]:
            # Arrays made here all lie alike, as the whole gradients of an update do.
            return stacked(optax.tree.zeros_like(shapes))[0]

        return state_type(count, *init(jax.eval_shape(stacks)))

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
        stacks, restore = stacked(links.widen(updates))
        changed, fields = update(stacks, state)
        out = jax.tree.map(lambda o, u: o.astype(u.dtype), restore(changed), updates)
        return out, state_type(count, *jax.tree.map(links.settled, fields))

    return optax.GradientTransformationExtraArgs(first, step)


def _refuse(who: str, shapes: Any, views: Any, complaint: Any) -> None:
    """Raises with the first leaf whose matrices there is a complaint about."""
    found = trees.leaf_views(who, shapes, views)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), view in zip(leaves, found, strict=True):
        for stack in jax.eval_shape(lambda x, v=view: trees.to_matrices(x, v), leaf):
            words = complaint(*stack.shape[1:]) if stack.size else None
            if words:
                name = trees.path_string(path)
                raise ValueError(
                    f"{who}: leaf {name!r} has shape {leaf.shape}; {words}"
                )


def require_known(who: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises if the value of an argument is not among the known words."""
    if value not in known:
        raise ValueError(f"{who}: {name} must be one of {known}, got {value!r}")


def require_positive(who: str, **numbers: int) -> None:
    """Raises unless the arguments, by name, are integers of at least 1."""
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{who}: {name} must be an integer of 1 or more, got {value!r}"
            )


def too_few_directions(rank: int) -> Callable[[int, int], str | None]:
    """Makes the complaint about matrices that have fewer directions than `rank`."""

    def complaint(m: int, n: int) -> str | None:
        if rank <= min(m, n):
            return None
        return (
            f"its matrices of shape ({m}, {n}) have {min(m, n)} directions, which rank="
            f"{rank} exceeds. Lower the rank, or send such leaves to `rest` with"
            " views=functools.partial(trees.matrix_views, rules=[(pattern, None)])."
        )

    return complaint


def sides(side: str, m: int, n: int) -> tuple[bool, bool]:
    """Tells whether the fan-in, and whether the fan-out, of (m, n) is projected."""
    # Of a square matrix the fan-in is the short side: in the layout of the authors of
    # GaLore, (out, in), rows >= columns means a projector of the columns.
    left = {"in": True, "out": False, "short": m <= n, "long": m > n, "both": True}
    return left[side], side == "both" or not left[side]


def empty_bases(shapes: list[Any], rank: int, side: str) -> list[Bases]:
    """Makes bases of zeros for stacks of these shapes."""

    def empty(x: Any, size: int, wanted: bool) -> jax.Array | None:
        directions = min(rank, *x.shape[1:])
        return jnp.zeros((x.shape[0], size, directions), x.dtype) if wanted else None

    found = []
    for x in shapes:
        m, n = x.shape[1:]
        left, right = sides(side, m, n)
        found.append((empty(x, m, left), empty(x, n, right)))
    return found


def new_bases(stacks: list[jax.Array], bases: list[Bases], basis: Basis) -> list[Bases]:
    """Finds bases of the shapes of `bases` for the ranges of these gradients."""

    def find(x: jax.Array, old: jax.Array | None) -> jax.Array | None:
        if old is None or not old.size:
            return old
        return basis(x, old.shape[-1]).astype(old.dtype)

    return [
        (find(x, left), find(x.mT, right))
        for x, (left, right) in zip(stacks, bases, strict=True)
    ]


def in_bases(stacks: list[jax.Array], bases: list[Bases]) -> list[jax.Array]:
    """Returns the coordinates of each stack."""
    return [kernels.project(x, *b) for x, b in zip(stacks, bases, strict=True)]


def out_of_bases(lows: list[jax.Array], bases: list[Bases]) -> list[jax.Array]:
    """Returns the stacks that have these coordinates."""
    return [kernels.lift(x, *b) for x, b in zip(lows, bases, strict=True)]


def normal_matrices(key: jax.Array, like: jax.Array) -> jax.Array:
    """Draws a stack of normal matrices, by their shape and their place in the stack.

    A draw then does not depend on how many matrices there are.
    """
    for size in like.shape[1:]:
        key = jax.random.fold_in(key, size)

    def draw(place: jax.Array) -> jax.Array:
        once = jax.random.fold_in(key, place)
        return jax.random.normal(once, like.shape[1:], like.dtype)

    return jax.vmap(draw)(jnp.arange(like.shape[0]))


def length_ratio(step: jax.Array, low: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns ||step|| / (||low|| + 1e-8), norms over some axes, which stay."""
    long, short = (
        jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)) for x in (step, low)
    )
    return long / (short + 1e-8)


def first_moments(shapes: list[Any], bases: list[Bases]) -> list[jax.Array]:
    """Makes zeros for the coordinates of each stack."""
    lows = jax.eval_shape(in_bases, shapes, bases)
    return [jnp.zeros(low.shape, low.dtype) for low in lows]


def adam(
    grads: list[jax.Array],
    mu: list[jax.Array],
    nu: list[jax.Array],
    b1: float | jax.Array,
    b2: float | jax.Array,
    eps: float | jax.Array,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Returns mu / (sqrt(nu) + eps) without bias correction, next mu and next nu."""
    mu = [
        (b1 * m + (1 - b1) * g).astype(m.dtype) for g, m in zip(grads, mu, strict=True)
    ]
    nu = [
        (b2 * v + (1 - b2) * g * g).astype(v.dtype)
        for g, v in zip(grads, nu, strict=True)
    ]
    return [m / (jnp.sqrt(v) + eps) for m, v in zip(mu, nu, strict=True)], mu, nu


def correction(
    count: jax.Array, b1: float | jax.Array, b2: float | jax.Array
) -> jax.Array:
    """Returns sqrt(1 - b2^t) / (1 - b1^t) for the t-th update, count = t - 1."""
    t = jnp.asarray(optax.safe_increment(count))
    return jnp.sqrt(1 - b2**t) / (1 - b1**t)
