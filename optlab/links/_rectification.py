"""How far a mean square of few gradients may be trusted."""

from typing import Any

import jax
import jax.numpy as jnp

# Gradients that a mean square must be worth before it divides.
ENOUGH = 5


def rectification(t: jax.Array, b2: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tells whether a mean square divides yet, and what then makes up for its variance.

    After t gradients a mean square with decay b2 is worth r_t of them:

        r = 2 / (1 - b2) - 1,   r_t = r - 2 t b2^t / (1 - b2^t)
        R_t = sqrt((r_t - 4) (r_t - 2) r / ((r - 4) (r - 2) r_t))   once r_t >= 5

    As written r_t is a difference of two numbers near 2 / (1 - b2), wrong by more in
    float32 than r_5 = 4.996 lies below 5. With b2 = exp(-a) it is

        r_t = 1 - 2 h(a) + 2 t h(t a),   h(y) = 1 / y - 1 / (exp(y) - 1)

    Args:
      t: Gradients so far, shape (), from 1.
      b2: Decay of the mean square, in (0, 1).

    Returns:
      Whether r_t is 5 or more, and R_t, which is 1 until then; both of shape ().

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import links
      >>> for t in (5, 6, 1000):
      ...     enough, factor = links.rectification(jnp.asarray(t), 0.999)
      ...     print(enough, f"{factor:.4f}")
      False 1.0000
      True 0.0258
      True 0.6453

    Source:
      L. Liu et al., "On the variance of the adaptive learning rate and beyond", 2019,
      arXiv:1908.03265. The form in h is this library's.
    """

    def h(y: jax.Array) -> jax.Array:
        square = y * y
        near = 0.5 - y * (1 / 12 - square * (1 / 720 - square / 30240))
        away = jnp.maximum(y, 0.1)  # 1 / 0 where it is not looked at
        return jnp.where(y < 0.1, near, 1 / away - 1 / jnp.expm1(away))

    # In floats: twice the largest count is no int32.
    t, a = t.astype(float), -jnp.log(jnp.asarray(b2, float))
    r = 1 - 2 * h(a) + 2 * t * h(t * a)
    most: Any = 2 / (1 - b2) - 1
    square = (r - 4) * (r - 2) * most / ((most - 4) * (most - 2) * r)
    enough = r >= ENOUGH
    return enough, jnp.sqrt(jnp.where(enough, square, 1.0))
