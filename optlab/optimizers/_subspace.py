"""What low-memory optimizers share: sides of a matrix, bases, Adam's moments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import kernels

SIDES = ("short", "long", "in", "out", "both")

# (..., m, n), rank -> orthonormal (..., m, rank)
Basis = Callable[[jax.Array, int], jax.Array]
Bases = tuple[jax.Array | None, jax.Array | None]


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


def normal_matrices(key: jax.Array, like: jax.Array, places: jax.Array) -> jax.Array:
    """Draws a stack of normal matrices, by their shape and their places in a stack.

    A draw then does not depend on how many matrices there are, nor on which are here.
    """
    for size in like.shape[1:]:
        key = jax.random.fold_in(key, size)

    def draw(place: jax.Array) -> jax.Array:
        once = jax.random.fold_in(key, place)
        return jax.random.normal(once, like.shape[1:], like.dtype)

    return jax.vmap(draw)(places)


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
