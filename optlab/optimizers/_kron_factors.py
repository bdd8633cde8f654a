"""Factors of PSGD-Kron: their first values, their fit and their use on a stack."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optlab import kernels

KNOWN = {
    "whiten": ("momentum", "gradient"),
    "geometry": kernels.WHITENING_GEOMETRIES,
    "diagonal": ("long", "longest", "longer", "all"),
}

# (key, shape, dtype) -> independent normal numbers
Normal = Callable[..., jax.Array]


def require_valid(
    words: Mapping[str, str], numbers: Mapping[str, tuple[int, int]], probability: Any
) -> None:
    """Raises for an unknown word, or for a number that is out of range."""
    for name, value in words.items():
        if value not in KNOWN[name]:
            raise ValueError(
                f"scale_by_psgd_kron: {name} must be one of {KNOWN[name]}, got"
                f" {value!r}"
            )
    for name, (value, least) in numbers.items():
        if int(value) != value or value < least:
            raise ValueError(
                f"scale_by_psgd_kron: {name} must be an integer of {least} or more, got"
                f" {value}"
            )
    if isinstance(probability, int | float) and not 0 < probability <= 1:
        raise ValueError(
            "scale_by_psgd_kron: probability must be in (0, 1] or a function of the"
            f" updates so far, got {probability}"
        )


def first(
    stack: Any,
    scale: Any,
    diagonal: str,
    *,
    max_size: int,
    max_skew: float,
    min_order: int,
) -> tuple[jax.Array, ...]:
    """Returns multiples of the identity, (k, d, d) or (k, d), for a stack's axes."""
    k, *sizes = stack.shape
    entries, longest = math.prod(sizes), max(sizes)
    if not k * entries:
        return ()
    alone = sizes.count(longest) == 1 and len(sizes) > 1
    spared = diagonal == "longest" or (diagonal == "longer" and alone)
    last = len(sizes) - 1 - sizes[::-1].index(longest)
    factors = []
    for axis, size in enumerate(sizes):
        short = (
            size == 1
            or size > max_size
            or size**2 > max_skew * entries
            or len(sizes) < min_order
            or diagonal == "all"
            or (spared and axis == last)
        )
        identity = jnp.ones(size) if short else jnp.eye(size)
        own = scale ** (1 / len(sizes)) * identity
        factors.append(jnp.broadcast_to(own, (k, *own.shape)).astype(stack.dtype))
    return tuple(factors)


def fitted(
    key: jax.Array,
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    norms: tuple[jax.Array, ...],
    *,
    damping: tuple[Any, Any],
    probes: int,
    normal: Normal,
    **settings: Any,
) -> tuple[Any, Any]:
    """Returns the next factors of a stack and the norms of their step."""
    if not factors:
        return factors, norms
    # By shape, so that a draw does not depend on how many matrices there are.
    for size in x.shape[1:]:
        key = jax.random.fold_in(key, size)
    keys = (jax.random.fold_in(key, i) for i in itertools.count())

    def draw(*shape: int) -> jax.Array:
        # The matrices of a stack share their noise: none sees another.
        drawn = normal(next(keys), (1, *shape), x.dtype)
        return jnp.broadcast_to(drawn, (len(x), *shape))

    def bound(y: jax.Array) -> jax.Array:
        if not probes:
            return kernels.row_norm_bound(y)
        return kernels.subspace_norm_bound(y, draw(probes, y.shape[-1]))

    noise = draw(*x.shape[1:])
    axes = tuple(range(1, x.ndim))
    mean = jnp.mean(jnp.abs(x), axis=axes, keepdims=True)
    damped = x + (damping[0] + damping[1] * mean) * noise
    return kernels.whitening_step(
        damped.astype(x.dtype), noise, factors, norms, norm_bound=bound, **settings
    )


def whitened(x: jax.Array, factors: tuple[jax.Array, ...]) -> jax.Array:
    """Multiplies a stack by P = Q^T Q along each axis."""
    if not factors:
        return x
    y = kernels.kronecker_apply(x, factors)
    return kernels.kronecker_apply(y, factors, transpose=True)


def clipped(x: jax.Array, rms: Any, entries: Any, eps: Any) -> jax.Array:
    """Scales matrices down to a root mean square, then limits their entries."""
    if rms is not None and x.size:
        axes = tuple(range(1, x.ndim))
        # Entries of 1e30 have squares beyond float32, so the largest is divided out.
        largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
        y = x / jnp.where(largest == 0, 1, largest)
        size = largest * jnp.sqrt(jnp.mean(y * y, axis=axes, keepdims=True))
        x = (x * jnp.minimum(1, rms / (size + eps))).astype(x.dtype)
    return x if entries is None else jnp.clip(x, -entries, entries).astype(x.dtype)
