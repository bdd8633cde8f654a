"""A kernel on stacks of several shapes, with no work and little to send for padding."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optlab.sharding._moves import Moves

Kernel = Callable[[jax.Array], jax.Array]


def applied(
    kernel: Kernel, moves: Sequence[Moves], blocks: Sequence[jax.Array]
) -> list[jax.Array]:
    """Applies a kernel to the matrices of stacks, inside `jax.shard_map`.

    Args:
      kernel: Maps (k, m, n) to (k, m, n).
      moves: The ways of each stack.
      blocks: What this device holds of each.

    Returns:
      What it holds of the results.
    """
    results: list[jax.Array] = [jnp.zeros(0)] * len(blocks)
    short: dict[object, list[int]] = {}
    for i, (move, block) in enumerate(zip(moves, blocks, strict=True)):
        # Half of the devices idle at worst: not worth a program that depends on k.
        if not move.place[0] and 2 * len(block) < move.size(move.axes):
            short.setdefault((move.moved, block.dtype), []).append(i)
        else:
            results[i] = _dealt(kernel, move, block)
    for members in short.values():
        own = _together(
            kernel, [moves[i] for i in members], [blocks[i] for i in members]
        )
        for i, result in zip(members, own, strict=True):
            results[i] = result
    return results


def _dealt(kernel: Kernel, move: Moves, block: jax.Array) -> jax.Array:
    """Applies the kernel to a stack by itself; a last row of padding is skipped."""
    x, rest = move.there(block), move.has_rest(len(block))
    if rest is None:
        return move.back(kernel(x), len(block))
    last = jax.lax.cond(rest, kernel, jnp.zeros_like, x[-1:])
    y = jnp.concatenate([kernel(x[:-1]), last]) if len(x) > 1 else last
    return move.back(y, len(block))


def _together(
    kernel: Kernel, moves: list[Moves], blocks: list[jax.Array]
) -> list[jax.Array]:
    """Applies the kernel to short stacks, matrices of like sizes at once."""
    devices = moves[0].size(moves[0].axes)
    sizes = [math.prod(block.shape[1:]) for block in blocks]
    order = sorted(range(len(blocks)), key=lambda i: -sizes[i])
    matrices = [(i, j) for i in order for j in range(len(blocks[i]))]
    rows: dict[tuple[int, int], jax.Array] = {}
    for number, start in enumerate(range(0, len(matrices), devices)):
        some = matrices[start : start + devices]
        # To and fro: who got the largest matrix of one turn gets the smallest next.
        turned = number % 2 == 1
        done = _turn(kernel, moves, blocks, some, turned)
        rows |= dict(zip(some, done, strict=True))
    return [
        jnp.stack([rows[i, j][: sizes[i]] for j in range(len(block))]).reshape(
            block.shape
        )
        for i, block in enumerate(blocks)
    ]


def _turn(
    kernel: Kernel,
    moves: list[Moves],
    blocks: list[jax.Array],
    some: list[tuple[int, int]],
    turned: bool,
) -> list[jax.Array]:
    """Applies the kernel to at most one matrix a device, and returns flat parts."""
    kinds = sorted({i for i, _ in some})
    length = max(math.prod(blocks[i].shape[1:]) for i in kinds)
    devices = moves[0].size(moves[0].axes)
    # Flat parts are cut over the mesh axes that cut the matrices, in their own order.
    flat = dataclasses.replace(moves[0], place=((), moves[0].moved), first=None)
    rows = jnp.stack([_padded(blocks[i][j].reshape(-1), length) for i, j in some])
    rows = jnp.pad(rows, ((0, devices - len(some)), (0, 0)))
    parts = flat.there(jnp.flip(rows, axis=0) if turned else rows)
    parts = parts.reshape(-1, length)
    mine = np.full(devices, len(kinds))
    mine[: len(some)] = [kinds.index(i) for i, _ in some]
    mine = jnp.asarray(mine[::-1] if turned else mine)
    branches = [_branch(kernel, moves[i], blocks[i].shape[1:], length) for i in kinds]
    here = mine[jax.lax.axis_index(moves[0].axes)]
    done = jax.lax.switch(here, [*branches, jnp.zeros_like], parts)
    rows = flat.back(done.reshape(1, -1), devices)
    return list(jnp.flip(rows, axis=0) if turned else rows)[: len(some)]


def _branch(kernel: Kernel, move: Moves, shape: tuple[int, ...], length: int) -> Kernel:
    """Makes the kernel for the flat parts of one matrix, (sources, length)."""
    size = math.prod(shape)

    def run(parts: jax.Array) -> jax.Array:
        whole = move.joined(parts[:, :size].reshape(-1, 1, *shape))
        own = move.parted(kernel(whole)).reshape(-1, size)
        return jax.vmap(functools.partial(_padded, length=length))(own)

    return run


def _padded(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, (0, length - x.size))
