"""Private gradients: clipped example by example, summed, and noised once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optlab import links, trees

ExampleLoss = Callable[[Any, Any], jax.Array]


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
    device's examples, for you to `psum` before the noise is added.

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
      TypeError: If the loss of an example is not one number.
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
    links.require_positive(who, clip=clip)
    size = _length(who, batch, valid)
    counts = jnp.ones(size, bool) if valid is None else valid
    cut = _cut_of((batch, counts))
    rows = _split(who, (batch, counts), size, microbatch_size, cut)

    def number(params: Any, example: Any) -> jax.Array:
        value = loss(params, example)
        if jnp.shape(value):
            raise TypeError(
                f"{who}: the loss of one example must be one number, got the shape"
                f" {jnp.shape(value)}; it takes an example, not a batch"
            )
        return value

    def one(example: Any, counts: jax.Array) -> tuple[Any, tuple[jax.Array, ...]]:
        value, grads = jax.value_and_grad(number)(params, example)
        grads = links.widen(grads)
        norm = links.tree_norm(grads)
        keep = counts.astype(bool) & jnp.isfinite(norm)
        factor = jnp.minimum(1, clip / jnp.where(norm > 0, norm, 1))
        # A choice, not a product: zero times infinity is no number.
        kept = jax.tree.map(lambda g: jnp.where(keep, factor * g, 0), grads)
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


def noised_mean(
    total: Any,
    key: jax.Array,
    *,
    clip: float | jax.Array,
    noise_multiplier: float | jax.Array,
    batch_size: float | jax.Array,
) -> Any:
    """Adds the noise of one step to a clipped sum, and divides by the batch size.

        G = (S + n) / B,     n ~ N(0, (sigma C)^2)

    Once a step, after everything is summed: over microbatches, over devices, over the
    parts of a batch too large for one call. `private_gradient` does it all; this is
    for sums of your own.

    Args:
      total: Tree S of arrays, of which no example moves more than C.
      key: Typed random key, a new one each step and kept secret: who knows it can
        subtract the noise. The same on every host: noise depends on the key, the order
        of the leaves and their shapes, not on the mesh or the placement.
      clip: The C of the sum.
      noise_multiplier: sigma, 0 or more; what a privacy accountant asks for.
      batch_size: B, the expected number of examples. Under Poisson sampling this is
        the sampling rate times the size of the data, not what came this time.

    Returns:
      Tree like the sum, of its dtypes; the noise is drawn in float32 or wider.

    Raises:
      TypeError: If the key is not a typed one.
      ValueError: If an argument is out of range, or clip is infinite with noise.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> mean = estimators.noised_mean(
      ...     jnp.zeros(100_000), jax.random.key(0),
      ...     clip=1.0, noise_multiplier=1.0, batch_size=4)
      >>> print(f"{mean.std():.2f}")
      0.25

    Source:
      Abadi et al., 2016, arXiv:1607.00133. The guarantee is that of real numbers:
      rounding in floating point is not accounted for.
    """
    _require_noise("noised_mean", key, clip, noise_multiplier, batch_size)
    std = jnp.where(noise_multiplier == 0, 0, noise_multiplier * clip)

    def noised(i: int, x: jax.Array) -> jax.Array:
        wide = links.widen(x)
        place = jax.typeof(x).sharding
        # By the place of the leaf: names, as numbers, could be the same twice.
        noise = jax.random.normal(
            jax.random.fold_in(key, i),
            x.shape,
            wide.dtype,
            out_sharding=place if any(place.spec) else None,
        )
        return ((wide + std * noise) / batch_size).astype(x.dtype)

    leaves, structure = jax.tree.flatten(total)
    return structure.unflatten(noised(i, x) for i, x in enumerate(leaves))


def private_gradient(
    loss: ExampleLoss,
    params: Any,
    batch: Any,
    key: jax.Array,
    *,
    clip: float | jax.Array,
    noise_multiplier: float | jax.Array,
    batch_size: float | jax.Array,
    microbatch_size: int | None = None,
    valid: jax.Array | None = None,
) -> PerExampleEstimate:
    """Estimates a gradient that hides whether any one example was there: DP-SGD.

        G = (sum_i g_i min(1, C / ||g_i||) + N(0, (sigma C)^2)) / B

    Sum and noise in one call, since they must agree on C and the noise belongs to the
    sum over all devices. What follows, any optimizer with momentum, decay and rate, is
    as private as G. Do not average such gradients over parts of a batch, as
    `optax.MultiSteps` does: each part has noise for a whole step.

        loss(params, example) -> number
        found = private_gradient(loss, params, batch, random.fold_in(key, step), ...)
        updates, state = tx.update(found.grads, state, params)

    A run that goes on from a checkpoint with other batches needs another key: two
    gradients with one noise differ by their data alone.

    Args:
      loss: From parameters and one example to a number.
      params: Tree of arrays.
      batch: Tree of arrays (b, ...), the examples.
      key: Typed random key, a new one each step; see `noised_mean`.
      clip: Largest norm C of an example's gradient, above 0.
      noise_multiplier: sigma, 0 or more; `privacy_spent` says what it is worth.
      batch_size: B, the expected number of examples; see `noised_mean`.
      microbatch_size: Examples differentiated at a time; see `clipped_gradient_sum`.
      valid: Which examples count, shape (b,). A batch drawn by chance, each example
        with the same probability, has another size each time: fill it up to a fixed
        one.

    Returns:
      The gradient in the dtypes of the parameters, and numbers that are not private.

    Raises:
      TypeError: As `clipped_gradient_sum` and `noised_mean`.
      ValueError: As they do.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optlab import estimators
      >>> rows = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]])
      >>> found = estimators.private_gradient(
      ...     jnp.dot, jnp.zeros(2), rows, jax.random.key(0),
      ...     clip=1.0, noise_multiplier=0.0, batch_size=3)
      >>> print(-0.1 * found.grads)
      [-0.03       -0.07333334]

    Source:
      Abadi et al., 2016, arXiv:1607.00133. Differs from `optax.contrib`'s: the batch
      size is the expected one, and gradients are not all held at once.
    """
    _require_noise("private_gradient", key, clip, noise_multiplier, batch_size)
    found = clipped_gradient_sum(
        loss, params, batch, clip=clip, microbatch_size=microbatch_size, valid=valid
    )
    mean = noised_mean(
        found.grads,
        key,
        clip=clip,
        noise_multiplier=noise_multiplier,
        batch_size=batch_size,
    )
    return found._replace(
        grads=jax.tree.map(lambda g, p: g.astype(p.dtype), mean, params)
    )


def _require_noise(
    who: str, key: Any, clip: Any, noise_multiplier: Any, batch_size: Any
) -> None:
    links.require_key(who, key)
    links.require_positive(who, clip=clip, batch_size=batch_size)
    links.require_nonnegative(who, noise_multiplier=noise_multiplier)
    numbers = (float, int, np.floating)
    if isinstance(clip, numbers) and math.isinf(clip):
        if not isinstance(noise_multiplier, numbers) or noise_multiplier > 0:
            raise ValueError(
                f"{who}: clip is infinite, so no noise hides an example; give a finite"
                " clip, or noise_multiplier=0.0"
            )


def _length(who: str, batch: Any, valid: jax.Array | None) -> int:
    """Returns b, the first size of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path({"batch": batch, "valid": valid})
    shapes = {trees.path_string(path): jnp.shape(x) for path, x in leaves}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"{who}: every leaf of the batch, and valid, has one entry for each"
            f" example, one or more; got the shapes {shapes}"
        )
    return lengths.pop()[0]


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
