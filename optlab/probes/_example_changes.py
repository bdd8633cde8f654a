"""What a step did to each example: who pays for the progress of the others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optlab import links


class ExampleChanges(NamedTuple):
    """What `example_changes` finds.

    Attributes:
      before: Loss of each example before, shape (b,).
      after: Loss of each example after, shape (b,).
      risen: Places of the examples whose loss rose most, the first one most, shape
        (k,), int32.
      fallen: Places of those whose loss fell most, the first one most, shape (k,),
        int32.
    """

    before: jax.Array
    after: jax.Array
    risen: jax.Array
    fallen: jax.Array


def example_changes(
    loss: Callable[[Any, Any], jax.Array],
    before: Any,
    after: Any,
    batch: Any,
    *,
    k: int = 5,
    microbatch_size: int | None = None,
) -> ExampleChanges:
    """Compares the loss of every example before and after a step, or many.

    A mean loss that falls a little may hide groups that fall and rise by much: outliers
    that pull in opposite directions.

    Args:
      loss: From parameters and one example to a number.
      before: Parameters before, tree of arrays.
      after: Parameters after.
      batch: Tree of arrays (b, ...), the examples.
      k: How many of the largest rises and falls to name, at most b.
      microbatch_size: Examples evaluated at a time; None for all at once, which a
        batch that is cut along Explicit axes needs.

    Returns:
      Losses and places. A loss that is no number afterwards counts as risen.

    Raises:
      ValueError: If k or microbatch_size makes no sense, or leaves of the batch differ
        in length.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import probes
      >>> x = jnp.array([1.0, -2.0, 3.0])
      >>> loss = lambda w, x: (w - x) ** 2
      >>> found = probes.example_changes(loss, 0.0, 1.0, x, k=1)
      >>> print(found.after - found.before, found.risen, found.fallen)
      [-1.  5. -5.] [1] [2]

    Source:
      Rosenfeld, Risteski, "Outliers with opposing signals have an outsized effect on
      neural network optimization", 2023, arXiv:2311.04163. UNVERIFIED: written from
      the idea, not from the authors' code.
    """
    size = links.require_one_length(
        "example_changes: every leaf of the batch has one entry for each example,"
        " one or more",
        batch,
    )
    if not 1 <= k <= size:
        raise ValueError(
            f"example_changes: k must be from 1 to the {size} examples, got {k}"
        )
    if microbatch_size is not None and microbatch_size < 1:
        raise ValueError(
            f"example_changes: microbatch_size must be 1 or more, got {microbatch_size}"
        )

    def both(example: Any) -> tuple[jax.Array, jax.Array]:
        return loss(before, example), loss(after, example)

    if microbatch_size is None:
        first, last = jax.vmap(both)(batch)
    else:
        first, last = jax.lax.map(both, batch, batch_size=microbatch_size)
    rising = jnp.argsort(_whole(last - first))
    return ExampleChanges(first, last, rising[::-1][:k], rising[:k])


def _whole(x: jax.Array) -> jax.Array:
    """Brings a row that is cut along Explicit axes together, to be sorted."""
    return jax.reshard(x, PartitionSpec()) if any(jax.typeof(x).sharding.spec) else x
