"""Losses that keep a model near its own earlier outputs, and the store of these."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import links


class TrajectoryBuffer(NamedTuple):
    """Outputs of the latest epochs, by example; see `trajectory_buffer`.

    Attributes:
      logits: Outputs, shape (lag + 1, examples, classes).
      epochs: Epoch of each output, shape (lag + 1, examples), int32; -1 where none is.
    """

    logits: jax.Array
    epochs: jax.Array


def saf_loss(
    logits: jax.Array,
    past_logits: jax.Array,
    labels: jax.Array,
    *,
    weight: float | jax.Array = 0.3,
    temperature: float | jax.Array = 5.0,
    known: jax.Array | None = None,
) -> jax.Array:
    """Cross entropy, and the distance from what the model said some epochs ago.

    Where the loss falls fast, outputs move far: a model that is held near its earlier
    outputs seeks flat regions, at the price of one pass a step.

        L = mean_i [CE(z_i, y_i) + weight T^2 KL(softmax(z_i'/T) || softmax(z_i/T))]

    z' is of the same example, from `recall` (sharpness-aware training for free), or
    from a second pass with the weights' average (its variant without a store; weight
    0.8, see `averaged_weights`). No gradient flows through z'.

    Args:
      logits: Outputs z, shape (..., classes); float32 or wider inside.
      past_logits: Outputs z', like them.
      labels: Classes, integers of shape (...), or probabilities like logits. What is no
        class, such as -1, has no cross entropy, and counts in the mean.
      weight: Weight of the distance, 0 or more.
      temperature: Temperature T, above 0.
      known: Booleans of shape (...): which examples have a z'. For the others the
        distance is 0; the mean is over all. None means all.

    Returns:
      The loss, shape ().

    Raises:
      ValueError: If weight or temperature is out of range, or shapes do not agree.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> z, past = jnp.array([[1.0, 0.0, -1.0]]), jnp.array([[2.0, 0.0, 0.0]])
      >>> for weight in (0.0, 0.3):
      ...     loss = estimators.saf_loss(z, past, jnp.array([0]), weight=weight)
      ...     print(f"{loss:.4f}")
      0.4076
      0.4391

    Source:
      Du et al., "Sharpness-aware training for free", 2022, arXiv:2205.14083, and the
      authors' code; weights and temperature are those of their commands. Differs from
      it: examples without a past are allowed.
    """
    links.require_nonnegative("saf_loss", weight=weight)
    links.require_positive("saf_loss", temperature=temperature)
    _require_shapes(logits, past_logits, labels, known)
    z, past = (
        x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for x in (logits, jax.lax.stop_gradient(past_logits))
    )
    if labels.ndim < logits.ndim:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=z.dtype)
    entropy = -jnp.sum(labels * jax.nn.log_softmax(z), axis=-1)
    now, then = (jax.nn.log_softmax(x / temperature) for x in (z, past))
    distance = jnp.sum(jnp.exp(then) * (then - now), axis=-1)
    if known is not None:
        distance = jnp.where(known, distance, 0)
    return jnp.mean(entropy + weight * temperature**2 * distance)


def trajectory_buffer(
    examples: int,
    classes: int,
    *,
    lag: int = 3,
    dtype: jax.typing.DTypeLike = jnp.float32,
    device: Any = None,
) -> TrajectoryBuffer:
    """Makes the empty store of a model's outputs, for `remember` and `recall`.

    It is a ring: outputs of an epoch are written at epoch mod (lag + 1), over those of
    lag + 1 epochs before. All three functions are pure, for use under `jax.jit`.

    Args:
      examples: Number of examples; their ids are 0 to examples - 1.
      classes: Number of outputs of an example.
      lag: Epochs from writing to reading, 1 or more.
      dtype: Dtype of what is stored; a narrow one halves the bytes.
      device: Device or sharding of the arrays, which have axes (lag + 1, examples,
        classes): `NamedSharding(mesh, PartitionSpec(None, "data"))` cuts the examples;
        the epochs of the outputs are then cut alike.

    Returns:
      The store, examples (lag + 1) classes numbers.

    Raises:
      ValueError: If a size is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> buffer, ids = estimators.trajectory_buffer(4, 2, lag=1), jnp.array([2, 3])
      >>> buffer = estimators.remember(buffer, ids, jnp.ones((2, 2)), epoch=0)
      >>> past, known = estimators.recall(buffer, jnp.array([1, 2]), 1, start=0)
      >>> print(known)
      [False  True]

    Source:
      As `saf_loss`.
    """
    for name, size in (("examples", examples), ("classes", classes), ("lag", lag)):
        if size < 1:
            raise ValueError(f"trajectory_buffer: {name} must be 1 or more, got {size}")
    shape = (lag + 1, examples, classes)
    place = device
    if isinstance(device, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*device.spec[:2])
        place = jax.sharding.NamedSharding(device.mesh, spec)
    return TrajectoryBuffer(
        jnp.zeros(shape, dtype, device=device),
        jnp.full(shape[:2], -1, jnp.int32, device=place),
    )


def remember(
    buffer: TrajectoryBuffer, ids: jax.Array, logits: jax.Array, epoch: Any
) -> TrajectoryBuffer:
    """Writes the outputs of a batch, over those of lag + 1 epochs before.

    Args:
      buffer: The store.
      ids: Examples, integers of shape (b,), each once; what is no id is not written.
      logits: Their outputs, shape (b, classes).
      epoch: Epoch in which they were made, counted from 0; may be traced.

    Returns:
      The store with them. Donate the old one to write in place.

    Raises:
      ValueError: If shapes do not agree.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> buffer = estimators.trajectory_buffer(3, 2, lag=1)
      >>> ids, logits = jnp.array([0]), jnp.ones((1, 2))
      >>> buffer = estimators.remember(buffer, ids, logits, epoch=5)
      >>> print(buffer.epochs)
      [[-1 -1 -1]
       [ 5 -1 -1]]

    Source:
      As `saf_loss`.
    """
    slots, examples, classes = buffer.logits.shape
    if jnp.shape(logits) != (*jnp.shape(ids), classes) or jnp.ndim(ids) != 1:
        raise ValueError(
            f"remember: logits of shape {jnp.shape(logits)} for ids of shape"
            f" {jnp.shape(ids)}; a store of {classes} classes takes (b, {classes}) and"
            " (b,)"
        )
    slot, ids = epoch % slots, _from_zero(ids, examples)
    new = jax.lax.stop_gradient(logits).astype(buffer.logits.dtype)
    stamps = jnp.full_like(ids, epoch, jnp.int32)

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        place = jax.typeof(old).sharding if _cut(old, ids) else None
        return old.at[slot, ids].set(new, mode="drop", out_sharding=place)

    return TrajectoryBuffer(write(buffer.logits, new), write(buffer.epochs, stamps))


def recall(
    buffer: TrajectoryBuffer,
    ids: jax.Array,
    epoch: Any,
    *,
    start: Any = 5,
    end: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Reads what the model said of a batch, lag epochs ago.

    Args:
      buffer: The store.
      ids: Examples, integers of shape (b,).
      epoch: The epoch now, counted from 0; may be traced.
      start: Nothing is known up to this epoch, inclusively.
      end: Nothing is known from this epoch on; None for never.

    Returns:
      Outputs, shape (b, classes), and whether they are known, booleans of shape (b,),
      for `saf_loss`. Outputs that were not written in that very epoch, or that are not
      finite, are not known, and zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> buffer, one = estimators.trajectory_buffer(1, 2, lag=3), jnp.array([0])
      >>> for epoch in range(7):
      ...     past, known = estimators.recall(buffer, one, epoch, start=5)
      ...     buffer = estimators.remember(buffer, one, jnp.full((1, 2), epoch), epoch)
      >>> print(past, known)
      [[3. 3.]] [ True]

    Source:
      As `saf_loss`: the distance counts for start < epoch < end.
    """
    slots, examples, _ = buffer.logits.shape
    then = epoch - (slots - 1)
    slot, ids = then % slots, _from_zero(ids, examples)

    def read(x: jax.Array, fill: float) -> jax.Array:
        place = None
        if _cut(x, ids):
            batch, stored = (jax.typeof(a).sharding.spec for a in (ids, x))
            place = jax.sharding.PartitionSpec(*batch, *stored[2:])
        picked = x.at[slot, ids]
        return picked.get(mode="fill", fill_value=fill, out_sharding=place)

    past, stamps = read(buffer.logits, 0), read(buffer.epochs, -1)
    known = (stamps == then) & (then >= 0) & (epoch > start)
    if end is not None:
        known &= epoch < end
    known &= jnp.all(jnp.isfinite(past), axis=-1)
    return jnp.where(known[:, None], past, 0), known


def averaged_weights(
    average: Any, params: Any, *, decay: float | jax.Array = 0.9998
) -> Any:
    """Moves an average of the weights one step on: a teacher for `saf_loss`.

        a_t = decay a_{t-1} + (1 - decay) w_t,   a_0 = w_0

    Call it after each step of the optimizer, and take the past outputs from a pass with
    the average.

    Args:
      average: The average; None to start one at the parameters.
      params: Tree of arrays.
      decay: Decay of the average, in [0, 1).

    Returns:
      Tree like the parameters, float32 or wider; a copy, safe to donate. Whole numbers
      are taken over as they are.

    Raises:
      ValueError: If the decay is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import estimators
      >>> average = estimators.averaged_weights(None, jnp.zeros(1, jnp.bfloat16))
      >>> for _ in range(10):
      ...     average = estimators.averaged_weights(average, jnp.ones(1, jnp.bfloat16))
      >>> print(f"{average[0]:.4f}")
      0.0020

    Source:
      As `saf_loss`; the decay is that of the authors' code. Differs from
      `optax.incremental_update`: that stands still in bfloat16, where 0.9998 is 1.
    """
    links.require_decays("averaged_weights", decay=decay)
    wide = links.widen(params)
    if average is None:
        return jax.tree.map(jnp.array, wide)

    def move(a: jax.Array, w: jax.Array) -> jax.Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return w
        return (a + (1 - decay) * (w - a)).astype(a.dtype)

    return jax.tree.map(move, average, wide)


def _from_zero(ids: jax.Array, examples: int) -> jax.Array:
    """Sends negative ids, which NumPy counts from the end, beyond the end."""
    return jnp.where(ids < 0, examples, ids)


def _cut(*arrays: jax.Array) -> bool:
    """Whether Explicit axes cut an array: then a result has to be told its place."""
    return any(any(jax.typeof(x).sharding.spec) for x in arrays)


def _require_shapes(logits: Any, past: Any, labels: Any, known: Any) -> None:
    shape = jnp.shape(logits)
    wanted = {
        "past_logits": (past, (shape,)),
        "labels": (labels, (shape[:-1], shape)),
        "known": (known, (shape[:-1],)),
    }
    for name, (x, allowed) in wanted.items():
        if not shape or (x is not None and jnp.shape(x) not in allowed):
            raise ValueError(
                f"saf_loss: {name} has shape {jnp.shape(x)}, logits {shape}; it must be"
                f" {' or '.join(map(str, allowed))}"
            )
