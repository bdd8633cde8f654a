"""Gradients of the examples of a batch, each clipped on its own, summed."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optlab import links, trees

ExampleLoss = Callable[[Any, Any], jax.Array]
NUMBERS = (float, int, np.floating, np.integer)


class PerExampleEstimate(NamedTuple):
    """What `clipped_gradient_sum` and `private_gradient` give.

    Only `grads` of `private_gradient` are private. The other numbers are for watching
    a run where the data are; whoever publishes them publishes something of the data.

    Attributes:
      grads: The clipped sum, or its noised mean; shaped like the parameters.
      values: Loss of each example, shape (b,).
      norms: Norm of each example's gradient before clipping, shape (b,).
      clipped: How many examples that count were clipped, shape (), int32.
    """

    grads: Any
    values: jax.Array
    norms: jax.Array
    clipped: jax.Array


def clipped_gradient_sum(
    loss: ExampleLoss,
    params: Any,
    batch: Any,
    *,
    clip: float | jax.Array,
    microbatch_size: int | None = None,
    valid: jax.Array | None = None,
) -> PerExampleEstimate:
    """Sums the gradients of the examples of a batch, each clipped on its own.

        g_i = grad loss(w, x_i)
        S   = sum_i g_i min(1, C / ||g_i||)          norm over the whole tree

    so that no example moves S by more than C. Examples are differentiated in
    microbatches, one after the other: the memory is that of the gradients of one
    microbatch, whatever the batch.

    On a mesh the batch lies along the devices and S is the sum over all of them. On
    Explicit axes a microbatch takes as many examples from each device, so
    `microbatch_size` is a multiple of the devices that share the batch; parameters are
    not cut along these axes; and devices speak once, after the last microbatch. On Auto
    axes they may do so after each. Inside `jax.shard_map` it is the sum over one
    device's examples, for you to `psum` before `noised_mean` adds the noise.

    The loss sees one example: what it does across examples, as batch normalization
    does, has no gradient per example.

    Args:
      loss: From parameters and one example to a number.
      params: Tree of arrays.
      batch: Tree of arrays (b, ...), the examples.
      clip: Largest norm C that is left alone, above 0; infinite for none.
      microbatch_size: Examples differentiated at a time, a divisor of b; None for b.
      valid: Which examples count, shape (b,), for batches filled up to a fixed size;
        None for all.

    Returns:
      The sum in float32 or wider, and numbers for each example, in the order of the
      batch. A zero gradient stays zero. An example whose gradient is not finite, or
      too long for its norm to be, counts as zero, which is within C.

    Raises:
      TypeError: If the loss of an example or clip is not one number.
      ValueError: If clip is not above 0, leaves of the batch differ in length, the
        microbatches do not fit, or a parameter is cut along the batch's axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> rows = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]])
      >>> found = estimators.clipped_gradient_sum(
      ...     jnp.dot, jnp.zeros(2), rows, clip=1.0, microbatch_size=1)
      >>> print(found.grads, found.norms, found.clipped)
      [0.90000004 2.2       ] [5.  0.5 2. ] 2

    Source:
      Abadi et al., "Deep learning with differential privacy", 2016, arXiv:1607.00133.
      Not `optax.microbatching`, which in Optax 0.2.8 copies the batch in memory and
      refuses a batch that is cut along Explicit axes.
    """
    who = "clipped_gradient_sum"
    require_numbers(who, clip=clip)
    links.require_positive(who, clip=clip)
    size = _length(who, batch, valid)
    counts = jnp.ones(size, bool) if valid is None else valid
    cut = _cut_of((batch, counts))
    rows = _split(who, (batch, counts), size, microbatch_size, cut)
    # Else `jax.shard_map` sums over devices what is still to be clipped.
    params = links.vary_like(jax.tree.map(jnp.asarray, params), rows)
    number = links.loss_of_one(who, loss)

    def one(example: Any, counts: jax.Array) -> tuple[Any, tuple[jax.Array, ...]]:
        value, grads = jax.value_and_grad(number)(params, example)
        grads = links.widen(grads)
        norm = links.tree_norm(grads)
        keep = counts.astype(bool) & jnp.isfinite(norm)
        factor = jnp.minimum(1, clip / jnp.where(norm > 0, norm, 1))
        # A choice, not a product: zero times infinity is no number.
        kept = jax.tree.map(
            lambda g: jnp.where(keep, (factor * g).astype(g.dtype), 0), grads
        )
        return kept, (value, norm, keep & (norm > clip))

    def microbatch(total: Any, i: jax.Array) -> tuple[Any, tuple[jax.Array, ...]]:
        pick = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False), rows
        )
        kept, numbers = jax.vmap(one)(*pick)
        sums = jax.tree.map(lambda g: jnp.sum(_first_axis(g, cut), 1), kept)
        return jax.tree.map(jnp.add, total, sums), numbers

    # A sum for each device: nothing is sent before the last microbatch.
    zero = jax.tree_util.tree_map_with_path(
        lambda path, p: _zeros(who, path, p, cut), links.widen(params)
    )
    times = jnp.arange(jax.tree.leaves(rows)[0].shape[1])
    parts, numbers = jax.lax.scan(microbatch, zero, times)
    total = jax.tree.map(lambda x: jnp.sum(x, 0), parts)
    values, norms, clipped = (_joined(x, cut) for x in numbers)
    return PerExampleEstimate(total, values, norms, jnp.sum(clipped, dtype=jnp.int32))


def require_numbers(who: str, **values: Any) -> None:
    """Raises unless arguments, by name, are one number each, which may be traced."""
    for name, value in values.items():
        if isinstance(value, NUMBERS):
            continue
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(f"{who}: {name} must be one number, got {value!r}")
        if value.shape:
            raise TypeError(
                f"{who}: {name} must be one number, got the shape {value.shape}"
            )


def _length(who: str, batch: Any, valid: jax.Array | None) -> int:
    """Returns b, the first size of every leaf."""
    size = links.require_one_length(
        f"{who}: every leaf of the batch, and valid, has one entry for each example,"
        " one or more",
        {"batch": batch, "valid": valid},
    )
    if valid is not None and jnp.ndim(valid) != 1:
        raise ValueError(
            f"{who}: valid must have the shape {(size,)}, got {jnp.shape(valid)}"
        )
    return size


class _Cut(NamedTuple):
    """How Explicit axes cut the batch: mesh, names of axes, number of devices."""

    mesh: Any
    names: Any
    devices: int

    def place(self, *rest: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(self.names, *rest))


def _cut_of(rows: Any) -> _Cut | None:
    """Finds along which devices the batch lies; None if one, or if nobody can say."""
    for x in jax.tree.leaves(rows):
        place = jax.typeof(jnp.asarray(x)).sharding
        if any(place.spec[:1]):
            names = jax.tree.leaves(place.spec[0])
            devices = math.prod(place.mesh.shape[name] for name in names)
            return _Cut(place.mesh, place.spec[0], devices)
    return None


def _split(
    who: str, rows: Any, size: int, microbatch_size: int | None, cut: _Cut | None
) -> Any:
    """Makes (microbatch, times) of the first axis, which keeps it where it lies.

    A microbatch is every so many-th example: with a batch along the devices it has as
    many from each, and nothing moves in memory.
    """
    m = size if microbatch_size is None else microbatch_size
    if not isinstance(m, int | np.integer) or isinstance(m, bool):
        raise TypeError(f"{who}: microbatch_size must be an integer, got {m!r}")
    if m < 1 or size % m:
        raise ValueError(
            f"{who}: microbatch_size must divide the {size} examples of the batch, got"
            f" {microbatch_size}"
        )
    if cut is not None and m % cut.devices:
        raise ValueError(
            f"{who}: the batch lies along {cut.devices} devices, so microbatch_size"
            f" must be a multiple of {cut.devices}, got {m}"
        )

    def reshaped(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        shape = (m, size // m, *x.shape[1:])
        if cut is None:
            return x.reshape(shape)
        # What is not cut yet, such as our own `valid`, goes along with what is.
        rest = jax.typeof(x).sharding.spec[1:]
        x = jax.reshard(x, cut.place(*rest))
        return jax.lax.reshape(x, shape, out_sharding=cut.place(None, *rest))

    return jax.tree.map(reshaped, rows)


def _first_axis(x: jax.Array, cut: _Cut | None) -> jax.Array:
    """From (microbatch, ...) to (devices, examples of each, ...)."""
    if cut is None:
        return x[None]
    shape = (cut.devices, x.shape[0] // cut.devices, *x.shape[1:])
    rest = jax.typeof(x).sharding.spec[1:]
    return jax.lax.reshape(x, shape, out_sharding=cut.place(None, *rest))


def _zeros(who: str, path: Any, param: jax.Array, cut: _Cut | None) -> jax.Array:
    """Makes zeros (devices, ...) for the sums of a parameter's gradients."""
    zero = jnp.zeros_like(param)[None]
    if cut is None:
        return zero
    spec = jax.typeof(param).sharding.spec
    if set(jax.tree.leaves((*spec,))) & set(jax.tree.leaves(cut.names)):
        raise ValueError(
            f"{who}: leaf '{trees.path_string(path)}' is cut along {cut.names!r}, as"
            " the batch is; bring it together first, with jax.reshard"
        )
    zero = jnp.broadcast_to(zero, (cut.devices, *param.shape))
    return jax.reshard(zero, cut.place(*spec))


def _joined(x: jax.Array, cut: _Cut | None) -> jax.Array:
    """From (times, microbatch) to the order of the batch."""
    if cut is None:
        return x.T.reshape(-1)
    return jax.lax.reshape(x.T, (x.size,), out_sharding=cut.place())
