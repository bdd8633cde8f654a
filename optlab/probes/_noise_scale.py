"""How noisy gradients are, and the batch size that this asks for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class NoiseScale(NamedTuple):
    """What `gradient_noise_scale` finds; each of the shape of its arguments.

    Attributes:
      gradient_sq: Estimate of the squared norm of the true gradient; noise can bring
        it below zero.
      noise: Estimate of the variance of one example's gradient, summed over entries.
      noise_scale: noise / gradient_sq, in examples; infinite where gradient_sq is not
        above zero, 0 where noise is not.
    """

    gradient_sq: jax.Array
    noise: jax.Array
    noise_scale: jax.Array


def gradient_noise_scale(
    small_sq_norm: Any, big_sq_norm: Any, *, small_batch: int, big_batch: int
) -> NoiseScale:
    """Separates signal from noise in gradients of two batch sizes.

    A gradient of B examples has E |G_B|^2 = |G|^2 + S / B. Two sizes b < B give both:

        |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)
        S = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)
        noise scale = S / |G|^2

    Batches far below the noise scale waste steps, batches far above it examples. Both
    numbers are without bias, the quotient is not: average the numbers over steps, as
    `record_noise_scale` does, never the quotients.

    Args:
      small_sq_norm: Squared norm |G_b|^2 of the mean gradient of b examples; the mean
        over the parts of the big batch is best.
      big_sq_norm: Squared norm |G_B|^2 of the mean gradient of B examples.
      small_batch: b, 1 or more.
      big_batch: B, above b.

    Returns:
      Both estimates and their quotient.

    Raises:
      ValueError: If the batch sizes are not in order.

    Example:
      >>> from optlab import probes
      >>> found = probes.gradient_noise_scale(5.0, 2.0, small_batch=1, big_batch=4)
      >>> print(found.gradient_sq, found.noise, found.noise_scale)
      1.0 4.0 4.0

    Source:
      McCandlish et al., "An empirical model of large-batch training", 2018,
      arXiv:1812.06162, appendix A. UNVERIFIED against the authors' code; the formulas
      follow from the line above them.
    """
    _require_sizes("gradient_noise_scale", small_batch, big_batch)
    b, big = small_batch, big_batch
    small_sq_norm = jnp.asarray(small_sq_norm, float)
    big_sq_norm = jnp.asarray(big_sq_norm, float)
    gradient_sq = (big * big_sq_norm - b * small_sq_norm) / (big - b)
    noise = (small_sq_norm - big_sq_norm) / (1 / b - 1 / big)
    return NoiseScale(gradient_sq, noise, _quotient(noise, gradient_sq))


class MicrobatchGradient(NamedTuple):
    """What `microbatch_gradient` gives.

    Attributes:
      value: Mean loss, shape ().
      grads: Mean gradient, of the dtypes of the parameters.
      small_sq_norm: Mean squared norm of the gradients of the microbatches, shape ().
    """

    value: jax.Array
    grads: Any
    small_sq_norm: jax.Array


def microbatch_gradient(loss: Any, params: Any, batches: Any) -> MicrobatchGradient:
    """Sums a gradient over microbatches and measures each on the way.

    The memory is that of one microbatch; sums are float32 or wider.

    Args:
      loss: From parameters and a microbatch to the mean over its examples.
      params: Tree of arrays.
      batches: Tree of arrays (k, b, ...), k microbatches of b examples.

    Returns:
      The mean gradient of all k b examples, and the number that `record_noise_scale`
      asks for.

    Raises:
      ValueError: If the leaves of the batches differ in their first axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import probes
      >>> batches = jnp.array([[1.0], [3.0]])  # two microbatches of one example
      >>> loss = lambda w, batch: jnp.mean(w * batch)
      >>> found = probes.microbatch_gradient(loss, jnp.array(1.0), batches)
      >>> print(found.grads, found.small_sq_norm)
      2.0 5.0

    Source:
      McCandlish et al., 2018, arXiv:1812.06162.
    """
    count = links.require_one_length(
        "microbatch_gradient: every leaf of the batches has the microbatches in front,"
        " as many as the others",
        batches,
    )

    def add(total: Any, batch: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        value, grads = jax.value_and_grad(loss)(params, batch)
        grads = links.widen(grads)
        square = links.inner_product(grads, grads)
        return jax.tree.map(jnp.add, total, grads), (value, square)

    zero = jax.tree.map(jnp.zeros_like, links.widen(params))
    total, (values, squares) = jax.lax.scan(add, zero, batches)
    grads = jax.tree.map(lambda t, p: (t / count).astype(p.dtype), total, params)
    return MicrobatchGradient(jnp.mean(values), grads, jnp.mean(squares))


class RecordNoiseScaleState(NamedTuple):
    """State of `record_noise_scale`.

    Attributes:
      count: Updates seen so far, shape (), int32.
      observed: Those of them whose numbers were finite, shape (), int32.
      gradient_sq: Average of the squared norm of the true gradient, shape (), float32.
      noise: Average of the variance of one example's gradient, shape (), float32.
      noise_scale: Their quotient, in examples, shape (), float32; infinite where the
        gradient is lost in the noise, and before the first update.
    """

    count: jax.Array
    observed: jax.Array
    gradient_sq: jax.Array
    noise: jax.Array
    noise_scale: jax.Array


def record_noise_scale(
    *, small_batch: int, big_batch: int, decay: float | jax.Array = 0.99
) -> optax.GradientTransformationExtraArgs:
    """Keeps the gradient noise scale of a run: which batch size it could use.

    Put it at the head of a chain, where updates are the mean gradient of the whole
    batch. Each update needs `small_sq_norm`, the mean squared norm of the gradients of
    its parts before they are averaged: of microbatches, as `microbatch_gradient`
    gives, or of devices.

        a <- a + (1 - decay) / (1 - decay^n) (estimate - a)     of |G|^2 and of S
        noise scale = S / |G|^2

    These are averages of the two numbers, without the bias of a start at zero.

    Args:
      small_batch: Examples b of a part.
      big_batch: Examples B of the whole batch.
      decay: Of the averages, at least 0 and below 1.

    Returns:
      A transformation that passes updates through untouched, bit for bit. Updates with
      a number that is not finite are counted and otherwise left out.

    Raises:
      ValueError: If the sizes are not in order, or decay is out of range.
      TypeError: If an update lacks `small_sq_norm`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import probes
      >>> tx = probes.record_noise_scale(small_batch=1, big_batch=4)
      >>> g = jnp.array([1.0, 1.0])  # of squared norm 2
      >>> _, state = tx.update(g, tx.init(g), small_sq_norm=5.0)
      >>> print(state.gradient_sq, state.noise, state.noise_scale)
      1.0 4.0 4.0

    Source:
      McCandlish et al., 2018, arXiv:1812.06162, appendix A; see
      `gradient_noise_scale`.
    """
    who = "record_noise_scale"
    _require_sizes(who, small_batch, big_batch)
    links.require_decays(who, decay=decay)

    def init(params: optax.Params) -> RecordNoiseScaleState:
        del params
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        far = jnp.full((), jnp.inf, jnp.float32)
        return RecordNoiseScaleState(none, none + 0, zero, zero + 0, far)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        small_sq_norm: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RecordNoiseScaleState]:
        del params, extra_args
        if small_sq_norm is None:
            raise TypeError(
                f"{who}: an update needs the mean squared norm of the parts' gradients:"
                " tx.update(grads, state, params, small_sq_norm=number), as of"
                " probes.microbatch_gradient"
            )
        wide = links.widen(updates)
        found = gradient_noise_scale(
            small_sq_norm,
            links.inner_product(wide, wide),
            small_batch=small_batch,
            big_batch=big_batch,
        )
        good = jnp.isfinite(found.gradient_sq) & jnp.isfinite(found.noise)
        observed = jnp.where(
            good, jnp.asarray(optax.safe_increment(state.observed)), state.observed
        )
        # As one array, so that the first weight is 1 whatever it rounds to.
        rate = jnp.asarray(decay, float)
        weight = (1 - rate) / (1 - rate ** jnp.maximum(observed, 1))

        def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
            moved = old + weight * (new - old)
            return jnp.where(good, moved, old).astype(jnp.float32)

        gradient_sq = averaged(state.gradient_sq, found.gradient_sq)
        noise = averaged(state.noise, found.noise)
        count = jnp.asarray(optax.safe_increment(state.count))
        rows = (gradient_sq, noise, _quotient(noise, gradient_sq))
        return updates, RecordNoiseScaleState(count, observed, *rows)

    return optax.GradientTransformationExtraArgs(init, update)


def _quotient(noise: jax.Array, gradient_sq: jax.Array) -> jax.Array:
    positive = gradient_sq > 0
    scale = jnp.maximum(noise, 0) / jnp.where(positive, gradient_sq, 1)
    return jnp.where(positive, scale, jnp.inf)


def _require_sizes(who: str, small_batch: Any, big_batch: Any) -> None:
    if not 1 <= small_batch < big_batch:
        raise ValueError(
            f"{who}: batch sizes must be 1 <= small_batch < big_batch, got"
            f" {small_batch} and {big_batch}"
        )
