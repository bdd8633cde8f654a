"""The sums over a schedule that laws are made of."""

import jax
import jax.numpy as jnp
import numpy as np

# Length of the stretches that one product with a triangular matrix sums.
STRETCH = 160


def warmup_of(rate: np.ndarray) -> int:
    """Counts the updates before the rate stops rising for the first time.

    Args:
      rate: Rate of every update, shape (T,), T at least 1.

    Returns:
      Steps of the warm-up, 0 for none.

    Example:
      >>> import numpy as np
      >>> from optlab import laws
      >>> laws.warmup_of(np.array([0.0, 0.5, 1.0, 1.0, 0.5]))
      2

    Source:
      Written for this library.
    """
    falls = np.flatnonzero(np.diff(rate) <= 0)
    return int(falls[0]) if falls.size else len(rate) - 1


def forward_area(rate: jax.typing.ArrayLike) -> jax.Array:
    """Sums the rates up to each update, S1.

    Args:
      rate: Rate of every update, shape (..., T).

    Returns:
      S1 after each update, same shape and dtype.

    Example:
      >>> from optlab import laws
      >>> print(laws.forward_area([1.0, 1.0, 0.5, 0.5, 0.25]))
      [1.   2.   2.5  3.   3.25]

    Source:
      Tissue et al., "Scaling law with learning rate annealing", 2024, arXiv:2408.11029.
    """
    return decaying_sum(jnp.asarray(rate), 1.0)


def annealing_area(
    rate: jax.typing.ArrayLike,
    *,
    decay: float | jax.Array = 0.999,
    warmup_steps: int | jax.Array = 0,
) -> jax.Array:
    """Sums the falls of the rate with a delay, S2.

        m_i = decay m_{i-1} + (rate_{i-1} - rate_i),    S2_i = m_1 + ... + m_i

    A fall counts more and more for about 1 / (1 - decay) updates. A rise of the rate
    after the warm-up counts against it.

    Args:
      rate: Rate of every update, shape (..., T).
      decay: What is left of m after one update, below 1; it may be traced.
      warmup_steps: Updates at the start whose rising rates do not count.

    Returns:
      S2 after each update, same shape and dtype as the rate.

    Example:
      >>> from optlab import laws
      >>> print(laws.annealing_area([1.0, 1.0, 0.5, 0.5, 0.25], decay=0.5))
      [0.    0.    0.5   0.75  1.125]

    Source:
      Tissue et al., 2024, arXiv:2408.11029; m starts at 0 as in the authors' script.
    """
    rate = jnp.asarray(rate)
    delayed = decaying_sum(falls(rate, warmup_steps), decay)
    return decaying_sum(delayed, 1.0)


def paid_falls(
    rate: jax.Array,
    decays: jax.Array,
    shares: jax.Array,
    warmup_steps: int | jax.Array = 0,
) -> jax.Array:
    """Sums the falls of the rate, each as far as it has paid after n updates.

        sum over the falls of  fall  sum_i shares_i (1 - decays_i^n)

    With one decay and the share 1 / (1 - decay) it is `annealing_area`.

    Args:
      rate: Rate of every update, shape (..., T).
      decays: Shape (r,), below 1; may be traced.
      shares: Shape (r,); may be traced.
      warmup_steps: As for `annealing_area`.

    Returns:
      The sum after each update, same shape and dtype as the rate.
    """
    decays, shares = jnp.asarray(decays, rate.dtype), jnp.asarray(shares, rate.dtype)
    # A fall has n = 1 in the update that it precedes, and age 0.
    one = jnp.ones(1, rate.dtype)
    return mixed_sum(
        falls(rate, warmup_steps),
        jnp.concatenate([one, decays]),
        jnp.concatenate([jnp.sum(shares, keepdims=True), -shares * decays]),
    )


def decaying_sum(x: jax.Array, decay: float | jax.Array) -> jax.Array:
    """y_i = decay y_{i-1} + x_i along the last axis."""
    return mixed_sum(x, jnp.asarray(decay, x.dtype)[None], jnp.ones(1, x.dtype))


def mixed_sum(x: jax.Array, decays: jax.Array, weights: jax.Array) -> jax.Array:
    """y_i = sum over k of weights_k sum over j of decays_k^(i - j) x_j.

    An associative scan in stretches: a stretch is summed by one triangular matrix for
    all decays, and what each decay hands on to the next stretch by the same function,
    one level up. `jax.lax.associative_scan` does the same in many small steps, whose
    gradient takes ten times as long to compile.
    """
    length = x.shape[-1]
    size = min(length, STRETCH)
    lag = jnp.arange(size)
    kept = decays[:, None] ** lag
    age = lag[:, None] - lag
    triangle = jnp.where(age >= 0, (weights @ kept)[jnp.abs(age)], 0.0)
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -length % size)]
    x = jnp.pad(x, pad).reshape(*x.shape[:-1], -1, size)
    total = jnp.einsum("...j,ij->...i", x, triangle, precision="highest")
    if length > STRETCH:
        ends = jnp.einsum("...j,kj->k...", x, kept[:, ::-1], precision="highest")
        ends = jax.vmap(decaying_sum)(ends, decays**STRETCH)
        before = jnp.concatenate([jnp.zeros_like(ends[..., :1]), ends[..., :-1]], -1)
        left = weights[:, None] * decays[:, None] * kept
        total += jnp.einsum("k...,ki->...i", before, left, precision="highest")
    return total.reshape(*total.shape[:-2], -1)[..., :length]


def falls(rate: jax.Array, warmup_steps: int | jax.Array) -> jax.Array:
    """The fall of the rate before each update; 0 up to the end of the warm-up."""
    before = jnp.concatenate([rate[..., :1], rate[..., :-1]], axis=-1)
    after_warmup = jnp.arange(rate.shape[-1]) > jnp.asarray(warmup_steps)[..., None]
    return jnp.where(after_warmup, before - rate, 0.0)


def progress(rate: jax.Array, power: float | jax.Array) -> jax.Array:
    """Sums rates to a power; 0 to any power is 0, with a finite gradient."""
    if isinstance(power, float) and power == 1.0:
        return forward_area(rate)
    positive = rate > 0
    logarithm = jnp.log(jnp.where(positive, rate, 1.0))
    return forward_area(jnp.where(positive, jnp.exp(power * logarithm), 0.0))


def started(area: jax.Array) -> jax.Array:
    """The area; before the first progress as after it, for powers below 0."""
    begun = area > 0
    first = jnp.min(jnp.where(begun, area, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(begun, area, first)
