"""Any transformation, with its state at rest in bfloat16 or in eight bits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links

# Bytes of an entry.
WIDTHS = {"bfloat16": 2, "8bit": 1}
ROUNDINGS = ("stochastic", "nearest")


class StatePrecisionState(NamedTuple):
    """State of `state_precision`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      key: Random key of the roundings to come, shape (); an empty tuple without them.
      inner_state: The inner state, its arrays of floats in bfloat16 or uint8.
      scales: For each of these, by its place in the inner state, what it is read with,
        in the dtype that it has in use: a float for each block of eight bits, a zero
        for bfloat16. Without any a zero stands here.
    """

    count: jax.Array
    key: Any
    inner_state: Any
    scales: Any


def state_precision(
    inner: optax.GradientTransformation,
    stored: str = "bfloat16",
    *,
    rounding: str = "stochastic",
    block_size: int = 256,
    min_size: int = 4096,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the state of a transformation in two bytes an entry, or in one.

    Between updates every array of floats with an axis and `min_size` entries or more is
    stored in bfloat16, or as `links.to_eight_bits` writes it; the inner update sees it
    in float32. Scalars, integers and random keys stay as they are.

    An average with a decay of 0.999 moves by less than either format resolves: rounded
    to the nearest value it stands still, and Adam's steps are off by any factor.
    Rounded up or down by chance it moves as it should on average.

    On a CPU the draws take several times as long as Adam's own sums; rounding to the
    nearest value does not. Averages take either well. Eigenbases and inverse roots, as
    in SOAP and Shampoo, lose digits that are used: late in a run their losses are a
    few times as high.

    Args:
      inner: Any transformation.
      stored: 'bfloat16' or '8bit'.
      rounding: 'stochastic', or 'nearest' for averages with decays of 0.9 and less.
      block_size: Entries with one scale in eight bits.
      min_size: Smallest array that is stored so; small ones are not worth it.
      key: Random key of the roundings; None means `jax.random.key(0)`.

    Returns:
      A transformation; updates keep their dtype. On a mesh with Explicit axes, eight
      bits for a row of which a device has no whole number of blocks make it travel.

    Raises:
      TypeError: If inner is no transformation.
      ValueError: If a word is unknown, a size is below its least, or a state comes that
        was stored otherwise.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> w = jnp.ones((64, 256))
      >>> for stored in ("bfloat16", "8bit"):
      ...     tx = wrappers.state_precision(optax.scale_by_adam(), stored)
      ...     state = jax.eval_shape(tx.init, w)
      ...     arrays = [x for x in jax.tree.leaves(state) if x.ndim]
      ...     print(sum(x.size * x.dtype.itemsize for x in arrays) / w.size)
      4.0
      2.03125

    Source:
      T. Dettmers et al., "8-bit optimizers via block-wise quantization", 2021,
      arXiv:2110.02861. Differs from it: see `links.to_eight_bits`; rounding is
      stochastic.
    """
    _check(inner, stored, rounding, block_size, min_size)
    inner = optax.with_extra_args_support(inner)
    chance = rounding == "stochastic"

    def pack(state: Any, key: jax.Array | None) -> tuple[Any, Any]:
        return _packed(state, stored, block_size, min_size, key)

    # One program: what devices send each other leaf by leaf may block them.
    pack_first = jax.jit(pack)

    def init(params: optax.Params) -> StatePrecisionState:
        start = jax.random.key(0) if key is None else key
        # New keys: the state must not alias the caller's.
        following, now = jax.random.split(start) if chance else ((), None)
        state = inner.init(links.widen(params))
        packed, scales = pack_first(state, now)
        return StatePrecisionState(jnp.zeros((), jnp.int32), following, packed, scales)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StatePrecisionState]:
        if chance and isinstance(state.key, tuple):
            raise ValueError(
                "state_precision: the state has no key, it is one of rounding='nearest'"
            )
        following, now = jax.random.split(state.key) if chance else ((), None)
        out, inner_state = inner.update(
            links.widen(updates),
            _unpacked(state.inner_state, state.scales, stored, block_size),
            links.widen(params),
            **extra_args,
        )
        packed, scales = pack(inner_state, now)
        count = jnp.asarray(optax.safe_increment(state.count))
        out = jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)
        return out, StatePrecisionState(count, following, packed, scales)

    return optax.GradientTransformationExtraArgs(init, update)


def _packed(
    state: Any, stored: str, block_size: int, min_size: int, key: jax.Array | None
) -> tuple[Any, Any]:
    """Writes the arrays of a state, and what each of them is read with."""
    flat, structure = jax.tree_util.tree_flatten_with_path(state)
    packed, scales = [], {}
    for index, (path, x) in enumerate(flat):
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        wide = floats and x.dtype.itemsize > WIDTHS[stored]
        if wide and x.ndim and x.size >= max(min_size, 1):
            own = None if key is None else links.leaf_key(key, path)
            if stored == "bfloat16":
                scales[str(index)] = jnp.zeros((), x.dtype)
                x = links.to_bfloat16(x, own)
            else:
                x, scales[str(index)] = links.to_eight_bits(x, block_size, own)
        packed.append(x)
    # `optax.tree.map_params` asks for a state without parameters: what it finds here
    # has to be a leaf, which stands for any tree.
    return structure.unflatten(packed), scales or jnp.zeros(())


def _unpacked(packed: Any, scales: Any, stored: str, block_size: int) -> Any:
    """Reads what `_packed` wrote."""
    leaves, structure = jax.tree.flatten(packed)
    for name, scale in scales.items() if isinstance(scales, dict) else ():
        x = leaves[int(name)]
        if x.dtype.itemsize != WIDTHS[stored]:
            raise ValueError(
                f"state_precision: the state was stored in {x.dtype}, this"
                f" transformation stores '{stored}'; build it as it was"
            )
        leaves[int(name)] = (
            x.astype(scale.dtype)
            if stored == "bfloat16"
            else links.from_eight_bits(x, scale, block_size)
        )
    return structure.unflatten(leaves)


def _check(
    inner: Any, stored: str, rounding: str, block_size: int, min_size: int
) -> None:
    links.require_transformation("state_precision", inner)
    for name, word, known in (
        ("stored", stored, tuple(WIDTHS)),
        ("rounding", rounding, ROUNDINGS),
    ):
        if word not in known:
            raise ValueError(
                f"state_precision: {name} must be one of {known}, got {word!r}"
            )
    for name, value, least in (
        ("block_size", block_size, 1),
        ("min_size", min_size, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"state_precision: {name} must be a whole number of {least} or more,"
                f" got {value!r}"
            )
