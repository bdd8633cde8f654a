"""Arrays in eight bits or in sixteen, rounded to the nearest value or by chance."""

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from optlab import trees

# Compiled whole for each shape: `init` is not, as a rule, and here are many operations.
_compiled = functools.partial(jax.jit, static_argnames="block_size")

# Levels beside zero: a block without a negative entry needs no bit for signs.
_UNSIGNED, _SIGNED = 255, 127


def leaf_key(key: jax.Array, path: Any) -> jax.Array:
    """Makes the random key of a leaf, the same whatever other leaves there are.

    Args:
      key: Random key of the step.
      path: Key path, as from `jax.tree_util.tree_flatten_with_path`.

    Returns:
      A key.

    Example:
      >>> import jax
      >>> from optlab import links
      >>> keys = jax.tree_util.tree_map_with_path(
      ...     lambda path, x: links.leaf_key(jax.random.key(0), path), {"a": 1, "b": 1}
      ... )
      >>> bool(keys["a"] == keys["b"])
      False
    """
    name = trees.path_string(path).encode()
    return jax.random.fold_in(key, zlib.crc32(name) & 0x7FFFFFFF)


def rises(
    x: jax.Array, low: jax.Array, high: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Says which entries to round up.

    With a key, x becomes `high` with the probability (x - low) / (high - low) and `low`
    otherwise, so that the mean is x.

    Args:
      x: Array of floats, between the other two.
      low: Values below or at x, of its shape and dtype.
      high: Values above or at x.
      key: Random key; None rounds to the nearer value.

    Returns:
      Booleans, shaped and placed like x; false where x is `low` or not a number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import links
      >>> x, zero, one = jnp.full(10_000, 0.3), jnp.zeros(10_000), jnp.ones(10_000)
      >>> print(f"{links.rises(x, zero, one, jax.random.key(0)).mean():.2f}")
      0.30
      >>> print(links.rises(x, zero, one).any())
      False
    """
    chance: jax.Array | float = 0.5
    if key is not None:
        # On a mesh with Explicit axes each device draws for its own entries.
        place = jax.typeof(x).sharding
        cut = place if any(place.spec) else None
        chance = jax.random.uniform(key, x.shape, x.dtype, out_sharding=cut)
    return chance * (high - low) < x - low


def bfloat16_neighbours(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the values of bfloat16 next to each entry.

    Args:
      x: Array of floats.

    Returns:
      The largest value that is not above and the smallest that is not below, both as
      float32. Twice x where bfloat16 holds it and where it is NaN; beyond the largest
      finite value twice that.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> print(*links.bfloat16_neighbours(jnp.array([1.001, -1.001, 0.5])))
      [ 1.        -1.0078125  0.5      ] [ 1.0078125 -1.         0.5      ]
    """
    x = x.astype(jnp.float32)
    # A bfloat16 is the upper half of a float32, and sizes are ordered like their bits.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    near = bits & jnp.uint32(0xFFFF0000)
    far = jnp.where(bits == near, near, near + jnp.uint32(0x10000))
    toward, away = (jax.lax.bitcast_convert_type(b, jnp.float32) for b in (near, far))
    toward = jnp.where(jnp.isnan(x), x, toward)
    away = jnp.where(jnp.isfinite(x) & jnp.isfinite(away), away, toward)
    negative = jnp.signbit(x)
    return jnp.where(negative, away, toward), jnp.where(negative, toward, away)


@jax.jit
def to_bfloat16(x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Rounds to bfloat16, on request up or down by chance, such that the mean is x.

    Args:
      x: Array of floats.
      key: Random key; None rounds to the nearest value.

    Returns:
      The array in bfloat16. What bfloat16 holds, infinities and NaN stay as they are;
      by chance nothing finite becomes infinite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import links
      >>> x = jnp.full(10_000, 1.001)
      >>> print(links.to_bfloat16(x).astype(float).mean())
      1.0
      >>> mean = links.to_bfloat16(x, jax.random.key(0)).astype(float).mean()
      >>> print(f"{mean:.4f}")
      1.0010

    Source:
      Written for this library.
    """
    if key is None:
        return x.astype(jnp.bfloat16)
    x = x.astype(jnp.float32)
    low, high = bfloat16_neighbours(x)
    return jnp.where(rises(x, low, high, key), high, low).astype(jnp.bfloat16)


@_compiled
def to_eight_bits(
    x: jax.Array, block_size: int, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Writes an array as bytes and one float for each block of its last axis.

    With s the largest size in a block, an entry is one of these:

        s (c / 255)^4              c = 0 .. 255       no entry of the block is negative
        sign s (c / 127)^2         c = 0 .. 127       otherwise

    So means of squares, whose entries differ by many powers of ten, have 255 levels
    from s to s / 4e9, and averages of both signs finer ones for what is small. The sign
    of the scale tells the two apart. In a block of the first kind only zero is written
    as zero: a mean square that vanished would be divided by.

    Args:
      x: Array of at least one axis, float32 or wider.
      block_size: Entries of a block; blocks do not run across rows.
      key: Random key to round up or down by chance, such that the mean is x (above the
        lowest level where that is not zero); None rounds to the nearer level.

    Returns:
      Codes, uint8, shaped and placed like x; and scales, of x's dtype, (..., blocks in
      a row). Entries beyond 8e37 of float32, as infinite ones, become that; a NaN
      makes its block NaN. A row that an Explicit mesh cuts within blocks is brought
      together on the way.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> codes, scales = links.to_eight_bits(jnp.array([4.0, 1.0, 1e-3]), 256)
      >>> print(codes, scales)
      [255 180  32] [4.]
      >>> [f"{x:.5f}" for x in links.from_eight_bits(codes, scales, 256)]
      ['4.00000', '0.99309', '0.00099']

    Source:
      T. Dettmers et al., "8-bit optimizers via block-wise quantization", 2021,
      arXiv:2110.02861: blocks, and finer levels for smaller entries. Differs from it:
      levels are powers, which need no table, and blocks end with the row.
    """
    blocks = _blocks(x, block_size)
    # A compiler divides by way of the reciprocal, which must not be subnormal.
    sizes = jnp.minimum(jnp.abs(blocks), 1 / jnp.finfo(x.dtype).tiny)
    largest = jnp.max(sizes, -1, keepdims=True)
    signed = jnp.any(blocks < 0, -1, keepdims=True)
    size = jnp.minimum(sizes / jnp.where(largest > 0, largest, 1), 1)
    root = jnp.sqrt(size)
    code = jnp.floor(jnp.where(signed, _SIGNED * root, _UNSIGNED * jnp.sqrt(root)))
    code += rises(size, _level(code, signed), _level(code + 1, signed), key)
    code = jnp.minimum(code, jnp.where(signed, _SIGNED, _UNSIGNED))
    code = jnp.where((size > 0) & ~signed, jnp.maximum(code, 1), code)
    code += jnp.where(blocks < 0, _SIGNED + 1, 0)
    codes = _rows(code.astype(jnp.uint8), x)
    return codes, jnp.where(signed, -largest, largest)[..., 0]


@_compiled
def from_eight_bits(codes: jax.Array, scales: jax.Array, block_size: int) -> jax.Array:
    """Reads what `to_eight_bits` wrote.

    Args:
      codes: Bytes, as returned there.
      scales: Scales, as returned there.
      block_size: The same size of blocks.

    Returns:
      The array, in the dtype of the scales.

    Raises:
      ValueError: If there are not as many scales as blocks.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> codes, scales = links.to_eight_bits(jnp.array([-2.0, 2.0]), 8)
      >>> print(links.from_eight_bits(codes, scales, 8))
      [-2.  2.]

    Source:
      See `to_eight_bits`.
    """
    blocks = _blocks(codes, block_size)
    if blocks.shape[:-1] != scales.shape:
        raise ValueError(
            f"from_eight_bits: scales of shape {blocks.shape[:-1]} belong to codes of"
            f" shape {codes.shape} in blocks of {block_size}, got {scales.shape}"
        )
    code = blocks.astype(scales.dtype)
    signed = jnp.signbit(scales)[..., None]
    negative = signed & (blocks > _SIGNED)
    size = _level(jnp.where(negative, code - (_SIGNED + 1), code), signed)
    size *= jnp.abs(scales)[..., None]
    return _rows(jnp.where(negative, -size, size), codes)


def _level(code: jax.Array, signed: jax.Array) -> jax.Array:
    square = jnp.square(code / jnp.where(signed, _SIGNED, _UNSIGNED))
    return jnp.where(signed, square, jnp.square(square))


def _blocks(x: jax.Array, block_size: int) -> jax.Array:
    """Cuts the last axis into blocks (..., k, block), the last one filled by zeros."""
    length = x.shape[-1]
    size = max(1, min(block_size, length))
    place = jax.typeof(x).sharding
    names = place.spec[-1] if len(place.spec) == x.ndim else None
    devices = math.prod(place.mesh.shape[name] for name in jax.tree.leaves(names))
    if length % (size * devices) and devices > 1:
        rows = PartitionSpec(*place.spec[:-1], None)
        x = jax.reshard(x, NamedSharding(place.mesh, rows))
    pad = -length % size
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)]) if pad else x
    return x.reshape(*x.shape[:-1], (length + pad) // size, size)


def _rows(blocks: jax.Array, like: jax.Array) -> jax.Array:
    """Joins blocks again to an array shaped and placed like another."""
    padded = blocks.shape[-2] * blocks.shape[-1]
    x = blocks.reshape(*blocks.shape[:-2], padded)[..., : like.shape[-1]]
    place = jax.typeof(like).sharding
    return jax.reshard(x, place) if any(place.spec) else x
