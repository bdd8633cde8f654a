"""What a compiled program sends between devices, counted and asserted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from optlab.sharding import _compiled_text
from optlab.sharding._compiled_text import KINDS, Collective


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collectives of a compiled program; see `collectives`.

    Attributes:
      found: The instructions, in the order of the program.
    """

    found: tuple[Collective, ...]

    @property
    def counts(self) -> dict[str, float]:
        """How often each kind runs in one call; kinds that do not are left out."""
        return self._sums(lambda one: one.times)

    @property
    def bytes_by_kind(self) -> dict[str, float]:
        """Bytes that a device sends in one call, for each kind."""
        return self._sums(lambda one: one.times * one.bytes if one.bytes else 0.0)

    @property
    def bytes(self) -> float:
        """Bytes that a device sends in one call."""
        return sum(self.bytes_by_kind.values())

    @property
    def in_loops(self) -> int:
        """Number of instructions that are inside a loop."""
        return sum(one.in_loop for one in self.found)

    def _sums(self, of: Callable[[Collective], float]) -> dict[str, float]:
        return {
            kind: sum(of(one) for one in self.found if one.kind == kind)
            for kind in KINDS
            if any(one.kind == kind for one in self.found)
        }

    def __str__(self) -> str:
        """A line for each instruction."""
        return "\n".join(map(str, self.found)) or "no collectives"


def collectives(fn: Any, *args: Any, **kwargs: Any) -> Collectives:
    """Counts what a program sends between devices, from its compiled text.

    Nothing is run. The bytes are those of the ring algorithms, sent by one device: of a
    result of b bytes on each device, in groups of g devices,

        all_to_all, all_gather                   b (g - 1) / g
        all_reduce                               2 b (g - 1) / g
        reduce_scatter                           b (g - 1)
        collective_permute, collective_broadcast b
        ragged_all_to_all                        at most b (g - 1) / g

    A start and its done are one collective. One inside a loop counts as often as the
    loop runs, and one inside a branch of a conditional as if the branch were taken.

    The bytes are those of the backend that compiles. On CPU, XLA turns bfloat16
    collectives into float32 ones, so they show twice the bytes that they have on an
    accelerator, unless they are sent as the bits of uint16.

    Args:
      fn: Function, to be put under `jax.jit`; a jitted function; its `Lowered` or
        `Compiled` form; or the text of a compiled program.
      *args: What a function is called with: arrays, or `jax.ShapeDtypeStruct` with
        shardings. None for the other forms.
      **kwargs: Likewise.

    Returns:
      The collectives; `print` lists them.

    Raises:
      TypeError: If fn is none of these, or arguments come with a compiled program.
      ValueError: If the text is no compiled program, or groups devices in a way that
        is not known here.

    Example:
      >>> from optlab import sharding
      >>> program = '''
      ...   ENTRY main {
      ...     p = f32[8,4] parameter(0)
      ...     ROOT r = f32[32,4] all-gather(p), replica_groups={{0,1,2,3}}
      ...   }'''
      >>> print(sharding.collectives(program))
      all_gather: 1 x 384 bytes, groups of 4, from the compiler
      >>> sharding.collectives(lambda x: x + 1, 2.0).counts
      {}

    Source:
      Written for this library.
    """
    return Collectives(_compiled_text.read(_text_of(fn, args, kwargs)))


def assert_collectives(
    fn: Any,
    *args: Any,
    all_to_all: float | None = None,
    all_gather: float | None = None,
    all_reduce: float | None = None,
    reduce_scatter: float | None = None,
    collective_permute: float | None = None,
    collective_broadcast: float | None = None,
    ragged_all_to_all: float | None = None,
    total: float | None = None,
    in_loops: int | None = None,
    bytes_at_most: float | None = None,
    **kwargs: Any,
) -> Collectives:
    """Asserts how often a program communicates, and how much.

    For tests: a step that quietly gathers its parameters is slow, not wrong. What is
    None is not checked; `total` closes the list.

    Args:
      fn: As for `collectives`.
      *args: As for `collectives`.
      all_to_all: How often this kind must run in one call.
      all_gather: Likewise.
      all_reduce: Likewise.
      reduce_scatter: Likewise.
      collective_permute: Likewise.
      collective_broadcast: Likewise.
      ragged_all_to_all: Likewise.
      total: How often all kinds together must run in one call.
      in_loops: How many instructions may, exactly, be inside loops.
      bytes_at_most: Bytes that a device may send in one call.
      **kwargs: As for `collectives`.

    Returns:
      What was found.

    Raises:
      AssertionError: If something differs; the message lists every collective.
      TypeError: As `collectives`.
      ValueError: As `collectives`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import sharding
      >>> x = jnp.ones(8)
      >>> sharding.assert_collectives(jnp.sum, x, total=0, bytes_at_most=0).bytes
      0

    Source:
      Written for this library.
    """
    wanted = {
        "all_to_all": all_to_all,
        "all_gather": all_gather,
        "all_reduce": all_reduce,
        "reduce_scatter": reduce_scatter,
        "collective_permute": collective_permute,
        "collective_broadcast": collective_broadcast,
        "ragged_all_to_all": ragged_all_to_all,
        "collectives in all": total,
        "collectives inside loops": in_loops,
    }
    got = collectives(fn, *args, **kwargs)
    found = got.counts | {
        "collectives in all": sum(got.counts.values()),
        "collectives inside loops": got.in_loops,
    }
    wrong = [
        f"wanted {want} {what}, found {found.get(what, 0)}"
        for what, want in wanted.items()
        if want is not None and want != found.get(what, 0)
    ]
    if bytes_at_most is not None and got.bytes > bytes_at_most:
        wrong.append(f"wanted at most {bytes_at_most:,} bytes, found {got.bytes:,.0f}")
    if wrong:
        raise AssertionError(
            f"assert_collectives: {'; '.join(wrong)}. The program has:\n{got}"
        )
    return got


def _text_of(fn: Any, args: tuple, kwargs: dict) -> str:
    if isinstance(fn, str | jax.stages.Lowered | jax.stages.Compiled):
        if args or kwargs:
            raise TypeError(
                "collectives: a lowered or compiled program has its arguments already;"
                " give it without any"
            )
        if isinstance(fn, str):
            return fn
    elif callable(fn):
        jitted = fn if isinstance(fn, jax.stages.Wrapped) else jax.jit(fn)
        fn = jitted.lower(*args, **kwargs)
    else:
        raise TypeError(
            "collectives: needs a function, a jitted, lowered or compiled one, or the"
            f" text of a program, got {type(fn).__name__}"
        )
    compiled = fn.compile() if isinstance(fn, jax.stages.Lowered) else fn
    text = compiled.as_text()
    if text is None:
        raise ValueError("collectives: this backend does not show compiled programs")
    return text
