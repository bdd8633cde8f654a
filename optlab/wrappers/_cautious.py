"""Cautious masking: only entries that agree with the gradient move."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links


def cautious(
    inner: optax.GradientTransformation,
    *,
    min_share: float | jax.Array = 1e-3,
    downhill: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Drops the entries of an update that point against the gradient of this step.

    A momentum remembers slopes that have turned since. Where update and gradient
    disagree in sign the step would climb; those entries are left out and the others of
    their leaf enlarged, so that on average a step has its old length.

        u_t = inner(g_t)
        s_i = 1 if u_i g_i > 0 else 0
        u_i <- u_i s_i / max(mean(s), min_share)         mean over the leaf

    Put the learning rate and weight decay behind: decay is not to be masked.

    Args:
      inner: Transformation of gradients, such as `optax.scale_by_adam()`.
      min_share: Least share of entries that divides, in (0, 1]; 1 keeps the length of
        entries as it is.
      downhill: Whether the inner updates have their minus sign already, as those of a
        whole optimizer; then entries with u_i g_i < 0 stay.

    Returns:
      A transformation with the inner one's state, float32 or wider. Updates keep their
      dtype. Signs are compared, not products: gradients of 1e-30 count. An update that
      is not a number makes its leaf so.

    Raises:
      TypeError: If inner is no transformation.
      ValueError: If min_share is out of range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> u, g = jnp.array([1.0, -1.0, 2.0, 0.5]), jnp.array([1.0, 1.0, 1.0, -1.0])
      >>> tx = wrappers.cautious(optax.stateless(lambda g, params: u))
      >>> print(tx.update(g, tx.init(g))[0])
      [2. 0. 4. 0.]

    Source:
      K. Liang et al., "Cautious optimizers: improving training with one line of code",
      2024, arXiv:2411.16085. UNVERIFIED against the authors' code: it divides by the
      mean of the mask with this least share, says a second source.
    """
    known = isinstance(min_share, float | int)
    if known and not 0 < min_share <= 1:
        raise ValueError(
            f"cautious: min_share must be above 0 and at most 1, got {min_share}"
        )
    links.require_transformation("cautious", inner)
    inner = optax.with_extra_args_support(inner)
    sign = -1 if downhill else 1

    def masked(u: jax.Array, g: jax.Array) -> jax.Array:
        # NaN is not below zero: it is kept, for whoever looks for it.
        kept = jnp.where(sign * jnp.sign(u) * jnp.sign(g) <= 0, 0, u)
        # Counted by its signs, what is kept is stored once and its mask never.
        share = jnp.sum(jnp.abs(jnp.sign(kept))) / max(u.size, 1)
        return kept / jnp.maximum(share, min_share)

    def init(params: optax.Params) -> Any:
        return inner.init(links.widen(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        gradients = links.widen(updates)
        directions, state = inner.update(
            gradients, state, links.widen(params), **extra_args
        )
        out = jax.tree.map(masked, directions, gradients)
        return jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
