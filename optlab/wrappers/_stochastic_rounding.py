"""Parameters in bfloat16 that move by less than they resolve."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links, trees


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`.

    Attributes:
      count: Updates applied so far, shape (), int32.
      key: Random key of the roundings to come, shape ().
      inner_state: The inner state, float32 or wider.
    """

    count: jax.Array
    key: jax.Array
    inner_state: Any


def stochastic_rounding(
    inner: optax.GradientTransformation, *, key: jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    """Rounds the parameters in bfloat16 up or down by chance, to the right mean.

    bfloat16 resolves a part in 256. An update below half of that is rounded away, and
    training stands still when it should become fine. Here, for such a parameter p,

        q = p + inner(g)                       in float32
        a <= q <= b                            two values that p can move to
        u = b - p   with probability (q - a) / (b - a),   else  a - p

    so that the mean of `optax.apply_updates(p, u)` is q: no copy of the parameters in
    float32 is needed. a and b are the values of bfloat16 next to q. Only if p moves by
    more than half of its size there may be none of bfloat16's u that leads to these;
    then a and b are values not much farther off that can be reached.

    Put it around the whole optimizer, with rate and decay: nothing may scale u after
    it, and u is for the very parameters that were given. Other dtypes pass unchanged.
    On a CPU the draws take longer than Adam's own sums.

    Args:
      inner: Any transformation whose updates are to be added. It sees parameters and
        gradients in float32.
      key: Random key of the roundings; None means `jax.random.key(0)`.

    Returns:
      A transformation that needs the parameters; updates keep their dtype.

    Raises:
      TypeError: If inner is no transformation, or the parameters are missing, or come
        in bfloat16 with gradients in float16, whose range is too small for u.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> def end(tx, p):
      ...     state = tx.init(p)
      ...     for _ in range(10):
      ...         updates, state = tx.update(jnp.ones_like(p), state, p)
      ...         p = optax.apply_updates(p, updates)
      ...     return f"{p.astype(float).mean():.3f}"
      >>> half = jnp.ones(10_000, jnp.bfloat16)
      >>> print(end(optax.sgd(1e-3), half))
      1.000
      >>> print(end(wrappers.stochastic_rounding(optax.sgd(1e-3)), half))
      0.990

    Source:
      P. Zamirai et al., "Revisiting BFloat16 Training", 2020, arXiv:2010.06192:
      stochastic rounding of the weight update. Ours is the way through
      `optax.apply_updates`, with an update in bfloat16 and a key for each leaf.
      UNVERIFIED against the authors' code.
    """
    links.require_transformation("stochastic_rounding", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> StochasticRoundingState:
        start = jax.random.key(0) if key is None else key
        # A new key: the state must not alias the caller's.
        return StochasticRoundingState(
            jnp.zeros((), jnp.int32),
            jax.random.fold_in(start, 0),
            inner.init(links.widen(params)),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        links.require_params("stochastic_rounding", params)
        following, now = jax.random.split(state.key)
        steps, inner_state = inner.update(
            links.widen(updates), state.inner_state, links.widen(params), **extra_args
        )

        def leaf(path: Any, step: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
            if p.dtype != jnp.bfloat16:
                return step.astype(u.dtype)
            if u.dtype == jnp.float16:
                raise TypeError(
                    f"stochastic_rounding: leaf '{trees.path_string(path)}' is in"
                    " bfloat16 and its gradient in float16; cast the gradient to"
                    " bfloat16 or float32"
                )
            return _by_chance(p, step, u.dtype, links.leaf_key(now, path))

        out = jax.tree_util.tree_map_with_path(leaf, steps, updates, params)
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, StochasticRoundingState(count, following, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _by_chance(p: jax.Array, step: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """Returns the update, in a dtype, that moves p by the step on average."""
    p = p.astype(jnp.float32)
    wanted = p + step.astype(jnp.float32)
    # Subtraction is exact up to a factor of two between p and its neighbour. Beyond, an
    # update rounded down cannot lead above the lower one, nor one rounded up below the
    # upper one.
    down, up = (x - p for x in links.bfloat16_neighbours(wanted))
    if dtype == jnp.bfloat16:
        down, up = links.bfloat16_neighbours(down)[0], links.bfloat16_neighbours(up)[1]
    low, high = (jax.lax.reduce_precision(p + u, 8, 7) for u in (down, up))
    return jnp.where(links.rises(wanted, low, high, key), up, down).astype(dtype)
