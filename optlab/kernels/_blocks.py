"""Cutting large matrices into blocks of equal size, and putting them together."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def split_blocks(x: jax.Array, block_size: int, order: int = 2) -> list[jax.Array]:
    """Cuts the last axes of an array into blocks of at most `block_size`.

    An axis of size d gives d // block_size blocks of that size and, if something is
    left, one smaller block at its end. No FLOPs; one copy of x.

    Args:
      x: Array, shape (k, d_1, ..., d_r).
      block_size: Largest size of a block along every axis, 1 or more.
      order: Number r of axes that are cut, all but the first.

    Returns:
      One array for each shape of block, the whole ones first: (k b, s_1, ..., s_r) for
      b blocks of that shape in each of the k arrays.

    Raises:
      ValueError: If block_size is no positive integer, or order does not fit x.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> blocks = kernels.split_blocks(jnp.ones((1, 5, 4)), 2)
      >>> [block.shape for block in blocks]
      [(4, 2, 2), (2, 1, 2)]

    Source:
      Anil et al., "Scalable second order optimization for deep learning", 2020,
      arXiv:2002.09018. Differs from the authors' code: small axes are not merged first.
    """
    sizes = _sizes(x.shape, block_size, order)
    blocks = []
    for region in _regions(sizes, block_size):
        part = x[(slice(None), *(slice(start, stop) for start, stop, _ in region))]
        counts = _counts(region)
        cut = [c for n, (_, _, s) in zip(counts, region, strict=True) for c in (n, s)]
        part = part.reshape(len(x), *cut)
        # (k, b_1, s_1, b_2, s_2, ...) -> (k, b_1, b_2, ..., s_1, s_2, ...)
        axes = (0, *range(1, 2 * order, 2), *range(2, 2 * order + 1, 2))
        whole = (len(x) * math.prod(counts), *(size for _, _, size in region))
        blocks.append(jnp.transpose(part, axes).reshape(whole))
    return blocks


def merge_blocks(
    blocks: Sequence[jax.Array], shape: tuple[int, ...], block_size: int
) -> jax.Array:
    """Undoes `split_blocks`.

    Args:
      blocks: Arrays as `split_blocks` returns them.
      shape: Shape (k, d_1, ..., d_r) of the original.
      block_size: As it was given to `split_blocks`.

    Returns:
      Array of that shape, dtype of the blocks.

    Raises:
      ValueError: If block_size is no positive integer, or the number of blocks is not
        that of `split_blocks`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.arange(20.0).reshape(1, 5, 4)
      >>> blocks = kernels.split_blocks(x, 2)
      >>> bool((kernels.merge_blocks(blocks, x.shape, 2) == x).all())
      True

    Source:
      See `split_blocks`.
    """
    order = len(shape) - 1
    sizes = _sizes(shape, block_size, order)
    parts = []
    for region, block in zip(_regions(sizes, block_size), blocks, strict=True):
        counts = _counts(region)
        part = block.reshape(shape[0], *counts, *block.shape[1:])
        pairs = zip(range(1, order + 1), range(order + 1, 2 * order + 1), strict=True)
        part = jnp.transpose(part, (0, *(axis for pair in pairs for axis in pair)))
        parts.append(part.reshape(shape[0], *(b - a for a, b, _ in region)))
    # The last axis varies fastest among the regions.
    for axis in range(order, 0, -1):
        pieces = len(_cuts(sizes[axis - 1], block_size))
        parts = [
            jnp.concatenate(parts[i : i + pieces], axis)
            for i in range(0, len(parts), pieces)
        ]
    return parts[0]


def _sizes(shape: tuple[int, ...], block_size: int, order: int) -> tuple[int, ...]:
    if block_size != int(block_size) or block_size < 1:
        raise ValueError(
            f"split_blocks: block_size must be an integer of 1 or more, got"
            f" {block_size}"
        )
    if order < 1 or len(shape) != order + 1:
        raise ValueError(
            f"split_blocks: needs shape (k, d_1, ..., d_r) with r = {order}, got"
            f" {shape}"
        )
    return shape[1:]


def _cuts(size: int, block_size: int) -> list[tuple[int, int, int]]:
    """Returns (start, stop, block) of the whole blocks of an axis and of the rest."""
    whole = size - size % block_size
    cuts = [(0, whole, block_size)] if whole else []
    return cuts + ([(whole, size, size - whole)] if whole < size or not size else [])


def _counts(region: Sequence[tuple[int, int, int]]) -> list[int]:
    """Returns how many blocks fit along each axis; none along an empty one."""
    return [(stop - start) // max(size, 1) for start, stop, size in region]


def _regions(sizes: tuple[int, ...], block_size: int):
    return itertools.product(*(_cuts(size, block_size) for size in sizes))
