"""Inverses of a moving average of outer products, one outer product at a time."""

import jax
import jax.numpy as jnp

RANK_ONE_RULES = ("code", "exact", "paper")


def rank_one_inverse(
    inverse: jax.Array,
    vector: jax.Array,
    decay: float | jax.Array,
    rule: str = "exact",
) -> jax.Array:
    """Updates an inverse F of a matrix that has moved towards an outer product v v^T.

    With c = decay, M = c F + (1 - c) I and q = v^T F v:

        exact  F <- (F - (1 - c) F v v^T F / (c + (1 - c) q)) / c
        code   F <- M - M v v^T M / (1 + v^T M v)
        paper  F <- c F + (1 - c) / (c^2 (1 + c (1 - c) q)) F v v^T F

    'exact' is the inverse of c L + (1 - c) v v^T, and grows by 1 / c a step wherever no
    v points. 'code' adds v v^T in full to the inverse of M, so F shrinks along v and
    returns to I elsewhere. 'paper' stays positive too but grows along v.

    Args:
      inverse: F, symmetric, shape (..., n, n).
      vector: v, shape (..., n).
      decay: Decay c, in (0, 1); shape ().
      rule: 'exact', 'code' or 'paper'.

    Returns:
      Array, shape (..., n, n), dtype of inverse, computed in float32 or wider;
      symmetric if F is. Finite for v from 1e-30 to 1e30 and entries of F up to 1e19.
      About 4 n^2 multiplications and additions ('code': 6 n^2).

    Raises:
      ValueError: If the rule is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> for rule in ("code", "exact", "paper"):
      ...     f = kernels.rank_one_inverse(jnp.eye(2), jnp.array([1.0, 0]), 0.95, rule)
      ...     print(f"{rule} {f[0, 0]:.4f} {f[1, 1]:.4f}")
      code 0.5000 1.0000
      exact 1.0000 1.0526
      paper 1.0029 0.9500

    Source:
      Sherman, Morrison, 1950. 'code' and 'paper': Mozaffari et al., "MKOR", 2023.
      UNVERIFIED: 'paper' is written down from memory of the paper's equations 5 and 6.
    """
    if rule not in RANK_ONE_RULES:
        raise ValueError(
            f"rank_one_inverse: rule must be one of {RANK_ONE_RULES}, got {rule!r}"
        )
    dtype = inverse.dtype
    inverse = inverse.astype(jnp.promote_types(dtype, jnp.float32))
    vector = vector.astype(inverse.dtype)
    size = jnp.max(jnp.abs(vector), axis=-1, keepdims=True)
    unit = vector / jnp.where(size == 0, 1, size)
    # All fractions are divided by size^2: at 1e30 it becomes 0, at 1e-30 infinite.
    shrunk = (1 / size / size)[..., None]
    rest = 1 - decay
    if rule == "code":
        inverse = decay * inverse + rest * jnp.eye(
            inverse.shape[-1], dtype=inverse.dtype
        )
    along = jnp.einsum("...ij,...j->...i", inverse, unit, precision="highest")
    product = jnp.sum(along * unit, axis=-1)[..., None, None]
    outer = along[..., :, None] * along[..., None, :]
    if rule == "code":
        updated = inverse - outer / (shrunk + product)
    elif rule == "exact":
        updated = (inverse - rest * outer / (decay * shrunk + rest * product)) / decay
    else:
        gain = rest / decay**2 / (shrunk + decay * rest * product)
        updated = decay * inverse + gain * outer
    return updated.astype(dtype)
