"""Mechanic: a learned factor on the sum of another optimizer's steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import links


class MechanicState(NamedTuple):
    """State of `mechanic`; numbers and trees are float32 or wider.

    Attributes:
      count: Updates applied so far, shape (), int32.
      s: Factors, one for each decay, shape (decays,); the factor on the steps is their
        sum.
      reward: What steps at these factors have won, alike.
      squares: Root of the decaying sum of h^2, alike.
      largest: Decaying maximum of |h|, alike.
      delta: Sum of the inner updates, shaped like the parameters.
      inner_state: State of the inner transformation.
    """

    count: jax.Array
    s: jax.Array
    reward: jax.Array
    squares: jax.Array
    largest: jax.Array
    delta: Any
    inner_state: Any


def mechanic(
    inner: optax.GradientTransformation,
    *,
    weight_decay: float | jax.Array = 0.01,
    s_init: float | jax.Array = 1e-6,
    decays: int = 6,
    eps: float | jax.Array = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Learns the scale of an optimizer's learning rate, and leaves its schedule alone.

    The parameters are where the inner optimizer's steps lead from the start, times a
    factor S that grows while gradients say that going further this way pays. With u for
    the inner updates, D for their sum, b from 0.9 to 0.999999 for six decays, products
    and norms over all leaves together:

        h = <g_t + weight_decay S_t ||g_t|| / ||x_t|| x_t, D_t>
        m <- max(b m, |h|)
        v <- b^2 v + h^2
        r <- max(0, b r - s h)
        s = (s_init m / decays + r) / (sqrt(v) + eps)
        D_{t+1} = D_t + u_t
        x_{t+1} = x_1 + S_{t+1} D_{t+1},   S = sum of s over the decays

    S starts at s_init and changes at the first h that is not zero. An inner rate wrong
    by a thousand either way is made up for in time. One that is too small takes longer,
    hundreds of steps on noisy gradients, and the decay, which grows with S, holds S
    back: choose one too large rather than too small, such as 1, or no decay. A schedule
    of the inner rate keeps its shape. State: 4 bytes a parameter beside the inner one.

    Args:
      inner: A whole optimizer, with learning rate and sign; a rate of 1 does.
      weight_decay: Pull of the factor towards zero, which is no decay of the weights.
      s_init: First factor, above 0 and far below any that makes sense.
      decays: How many averages, 1 or more: 1 - 0.1, 1 - 0.01 and so on.
      eps: Added to the root, in units of h.

    Returns:
      A transformation that needs the parameters. An h that is not a number leaves the
      factors as they were. Updates keep their dtype: bfloat16 parameters follow x up to
      their rounding.

    Raises:
      TypeError: If inner is no transformation, or an update comes without the
        parameters.
      ValueError: If a number is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optlab import wrappers
      >>> for rate in (1e-3, 1.0, 1e3):
      ...     tx = wrappers.mechanic(optax.sgd(rate))
      ...     w = jnp.array([1.0, 2.0, 3.0])
      ...     state, update = tx.init(w), jax.jit(tx.update)
      ...     for _ in range(200):  # the loss is half the square of w
      ...         updates, state = update(w, state, w)
      ...         w = optax.apply_updates(w, updates)
      ...     print(f"{rate:6g} {rate * jnp.sum(state.s):.2f} {abs(w[0]):.2f}")
       0.001 0.02 0.00
           1 0.03 0.00
        1000 0.09 0.00

    Source:
      A. Cutkosky, A. Defazio, H. Mehta, "Mechanic: a learning rate tuner", 2023,
      arXiv:2306.00144, and the authors' code in PyTorch. Differs from it: S starts at
      s_init, 1e-6 as in Optax, where that has 1e-8 and a first m of 1e-6, which is an
      absolute number; the decay is at x_t, where that has already taken the inner step,
      so that its size counts. Differs from `optax.contrib.mechanize` (0.2.8): D is
      kept, not solved for from parameters that round it off, so that small rates and
      bfloat16 start; h is not clipped; numbers are float32 whatever the parameters'
      dtype.
      The authors do not mean it for inner steps of a fixed length (LARS, LAMB). Around
      Muon it finds the rate, but S does not fall: give Muon a schedule that does.
    """
    who = "mechanic"
    links.require_nonnegative(who, weight_decay=weight_decay, eps=eps)
    links.require_positive(who, s_init=s_init)
    if not isinstance(decays, int) or decays < 1:
        raise ValueError(
            f"{who}: decays must be a whole number of 1 or more, got {decays}"
        )
    links.require_transformation(who, inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> MechanicState:
        wide = links.widen(params)
        s = jnp.full((decays,), s_init / decays, float)
        rows = [jnp.zeros((decays,), float) for _ in range(3)]
        delta, count = optax.tree.zeros_like(wide), jnp.zeros((), jnp.int32)
        return MechanicState(count, s, *rows, delta=delta, inner_state=inner.init(wide))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MechanicState]:
        links.require_params(who, params)
        g, x = links.widen(updates), links.widen(params)
        u, inner_state = inner.update(g, state.inner_state, x, **extra_args)

        old = jnp.sum(state.s)
        length = links.tree_norm(x)
        ratio = links.tree_norm(g) / jnp.where(length > 0, length, 1)
        along, across = (links.inner_product(y, state.delta) for y in (g, x))
        h = along + weight_decay * old * ratio * across
        rows = _tuned(state, h, s_init, eps)

        factor = jnp.sum(rows[0])
        # Not a difference of sums: a small step keeps its digits.
        out = jax.tree.map(
            lambda u, d, g: ((factor - old) * d + factor * u).astype(g.dtype),
            u,
            state.delta,
            updates,
        )
        delta = jax.tree.map(lambda d, u: (d + u).astype(d.dtype), state.delta, u)
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, MechanicState(count, *rows, delta=delta, inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _tuned(state: Any, h: jax.Array, s_init: Any, eps: Any) -> list[jax.Array]:
    """Returns s, r, the root of v, and m after another h."""
    decays = state.s.size
    b = 1 - 0.1 ** jnp.arange(1, decays + 1, dtype=state.s.dtype)
    largest = jnp.maximum(b * state.largest, jnp.abs(h))
    # A root, because squares overflow.
    squares = jnp.hypot(b * state.squares, h)
    reward = jnp.maximum(0, b * state.reward - state.s * h)
    wealth = s_init / decays * largest + reward
    s = jnp.where(squares > 0, wealth / (squares + eps), state.s)
    rows = (s, reward, squares, largest)
    old = (state.s, state.reward, state.squares, state.largest)
    known = jnp.isfinite(h)
    return [
        jnp.where(known, x, y).astype(y.dtype) for x, y in zip(rows, old, strict=True)
    ]
