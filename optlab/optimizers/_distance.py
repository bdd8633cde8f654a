"""What methods share that keep numbers of the whole tree, such as a distance."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import links

INFINITE = float("inf")


def require_estimate(who: str, learning_rate: Any, d0: Any, growth_rate: Any) -> None:
    """Checks what is known when the chain is built; traced numbers pass."""
    links.require_one_rate(who, learning_rate)
    links.require_positive(who, d0=d0)
    if isinstance(growth_rate, float | int) and not growth_rate >= 1:
        raise ValueError(f"{who}: growth_rate must be 1 or more, got {growth_rate}")


def numbers(count: int) -> list[jax.Array]:
    """Returns zeros of shape (), float32 or wider whatever the parameters' dtype."""
    return [jnp.zeros((), float) for _ in range(count)]


def absolute_sum(tree: Any) -> jax.Array:
    """Returns the sum of the sizes of all entries."""
    return links.inner_product(jax.tree.map(jnp.sign, tree), tree)


def grown(d: jax.Array, estimate: jax.Array, growth_rate: Any) -> jax.Array:
    """Returns d, or the estimate if that is larger, a number, and not by too much."""
    estimate = jnp.where(jnp.isfinite(estimate), estimate, 0)
    return jnp.maximum(d, jnp.minimum(estimate, d * growth_rate))


def sound(new: jax.Array, old: jax.Array) -> jax.Array:
    """Returns the new number if it is one."""
    return jnp.where(jnp.isfinite(new), new, old)


def moves(size: jax.Array, eta: Any, d: jax.Array) -> jax.Array:
    """Returns whether there is a step, known when all sums are: after d."""
    # All is zero before the first gradient, and a NaN is not. An estimate is a number:
    # what the sums are made of is replaced after them, and not copied.
    return (size != 0) & (eta != 0) & ~jnp.isnan(d)


def decays(weight_decay: Any, mask: Any, params: Any) -> Any:
    """Returns for each entry how much it decays; None if it is known that none does."""
    if isinstance(weight_decay, float | int) and weight_decay == 0:
        return None
    link = links.add_decayed_weights(weight_decay, mask)
    zeros, ones = optax.tree.zeros_like(params), optax.tree.ones_like(params)
    return link.update(zeros, link.init(params), ones)[0]


def decayed(
    u: Any, decay: Any, params: Any, factor: Any = 1.0, proximal: bool = False
) -> Any:
    """Returns u + a x, where a is factor times the decay; proximal over 1 + a."""
    if decay is None:
        return u

    def leaf(u: jax.Array, c: jax.Array, x: jax.Array) -> jax.Array:
        u = u + factor * c * x
        return u / (1 + factor * c) if proximal else u

    return jax.tree.map(leaf, u, decay, params)


def held(moves: jax.Array, new: Any, old: Any) -> Any:
    """Returns the new state if anything moves, in old dtypes; the rate goes on."""
    kept = jax.tree.map(lambda n, o: jnp.where(moves, n, o).astype(o.dtype), new, old)
    return kept._replace(rate=new.rate)


def steps(moves: jax.Array, downhill: Any, updates: Any) -> Any:
    """Returns the updates, zero if nothing moves, in the dtypes in which they came."""
    return jax.tree.map(
        lambda u, g: jnp.where(moves, -u, 0).astype(g.dtype), downhill, updates
    )
