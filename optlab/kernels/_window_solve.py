"""Inverses of a few outer products plus damping, through a small matrix of products."""

import jax
import jax.numpy as jnp
from jax.scipy import linalg


def window_weights(
    gram: jax.Array,
    norms: jax.Array,
    rhs: jax.Array,
    damping: float | jax.Array,
) -> jax.Array:
    """Solves for combinations of window rows, without the rows themselves.

    For rows g_i = s_i r_i of a window G, shape (m, d), the inverse of

        F = damping I + (1 / m) sum_i g_i g_i^T

    times any combination of rows is again a combination: F^-1 G^T b = R^T w, with

        w = m S (m damping I + S R R^T S)^-1 b,   S = diag(s)

    Only m by m numbers are needed, nothing is divided by the damping, and nothing
    cancels. Rows and columns are scaled so that the diagonal is 1; the damping counts
    as at least 4 eps |g_i|^2 for row i, or rounding could make the matrix indefinite.

    Args:
      gram: Products R R^T of rows of norm one (or zero), shape (..., m, m).
      norms: Norms s, shape (..., m); 0 for a row that is not there.
      rhs: Combination b, shape (..., m).
      damping: Damping, above 0, in units of a squared gradient; shape ().

    Returns:
      Weights w, shape (..., m), dtype of gram. Finite for norms from 1e-30 to 1e30 and
      for equal rows. About m^3 / 3 multiplications and additions.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> gram, norms = jnp.diag(jnp.array([1.0, 0.0])), jnp.array([5.0, 0.0])
      >>> weights = kernels.window_weights(gram, norms, jnp.array([1.0, 0.0]), 0.5)
      >>> print(weights)  # F = 0.5 + 25 / 2 along the only row
      [0.3846154 0.       ]

    Source:
      Frantar et al., "M-FAC", 2021, section 3, in another form: their recursion, and
      the LU factors of their code, are a Cholesky factorisation written out.
    """
    dtype, gram, norms, rhs = _wide(gram, norms, rhs)
    factor, row, short, root = _factored(gram, norms, damping)
    # D (D A D)^-1 D b with D = short / root and S D = row.
    inner = linalg.cho_solve((factor, True), (short / root * rhs)[..., None])[..., 0]
    return (norms.shape[-1] * row * inner).astype(dtype)


def window_solve(
    window: jax.Array, x: jax.Array, damping: float | jax.Array
) -> jax.Array:
    """Multiplies by the inverse of damping I + (1 / m) sum_i g_i g_i^T.

        F^-1 x = (x - G^T (m damping I + G G^T)^-1 G x) / damping

    Args:
      window: Rows g_i, shape (..., m, d); leading axes are blocks of their own.
      x: Vectors, shape (..., d).
      damping: Damping, above 0, in units of a squared gradient; shape ().

    Returns:
      Array, shape (..., d), dtype of x. The difference loses |g|^2 / (m damping) times
      the rounding; for an x that is a combination of rows `window_weights` does not.
      About m^2 d + m^3 / 3 + 4 m d multiplications and additions.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> window = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> a, b = kernels.window_solve(window, jnp.ones(2), 1.0)
      >>> print(f"{a:.4f} {b:.4f}")  # 1 / 1.5 and 1 / 3
      0.6667 0.3333

    Source:
      Frantar et al., "M-FAC", 2021, static algorithm; by Cholesky, not by recursion.
    """
    dtype, window, x = _wide(window, x)
    unit, factor, row = _window_factored(window, damping)
    along = jnp.einsum("...md,...d->...m", unit, x, precision="highest")
    y = row * linalg.cho_solve((factor, True), (row * along)[..., None])[..., 0]
    inside = jnp.einsum("...md,...m->...d", unit, y, precision="highest")
    return ((x - inside) / damping).astype(dtype)


def window_inverse_diagonal(window: jax.Array, damping: float | jax.Array) -> jax.Array:
    """Returns the diagonal of the inverse of damping I + (1 / m) sum_i g_i g_i^T.

        diag(F^-1) = (1 - column norms of L^-1 G, squared) / damping
        L L^T = m damping I + G G^T

    Args:
      window: Rows g_i, shape (..., m, d).
      damping: Damping, above 0, in units of a squared gradient; shape ().

    Returns:
      Array, shape (..., d), dtype of window. About 2 m^2 d multiplications and
      additions.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> window = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> a, b = kernels.window_inverse_diagonal(window, 1.0)
      >>> print(f"{a:.4f} {b:.4f}")
      0.6667 0.3333

    Source:
      Frantar et al., "M-FAC", 2021, static algorithm, for pruning by saliency.
    """
    dtype, window = _wide(window)
    unit, factor, row = _window_factored(window, damping)
    scaled = row[..., :, None] * unit
    half = jax.lax.linalg.triangular_solve(factor, scaled, left_side=True, lower=True)
    return ((1 - jnp.sum(half * half, axis=-2)) / damping).astype(dtype)


def _wide(*arrays: jax.Array):
    """Returns the first one's dtype, and all in float32 or wider."""
    dtype = jnp.result_type(*arrays, jnp.float32)
    return arrays[-1].dtype, *(x.astype(dtype) for x in arrays)


def _window_factored(window, damping):
    """Scales the rows to norm one and factorises their products."""
    largest = jnp.max(jnp.abs(window), axis=-1, keepdims=True, initial=0.0)
    unit = window / jnp.where(largest == 0, 1.0, largest)
    norms = jnp.sqrt(jnp.sum(unit * unit, axis=-1, keepdims=True))
    unit = unit / jnp.where(norms == 0, 1.0, norms)
    gram = jnp.einsum("...id,...jd->...ij", unit, unit, precision="highest")
    factor, row, _, _ = _factored(gram, (largest * norms)[..., 0], damping)
    return unit, factor, row


def _factored(gram, norms, damping):
    """Factorises D (m damping I + S K S) D, where D makes the diagonal 1.

    Returns the factor L, the diagonal of S D, that of sqrt(m damping) D, and
    sqrt(m damping).
    """
    m = norms.shape[-1]
    root = jnp.sqrt(m * jnp.asarray(damping, norms.dtype))
    ratio = norms / root
    short = 1 / jnp.hypot(1.0, ratio)  # no square of a norm of 1e30
    row = ratio * short
    floor = 4 * m * jnp.finfo(gram.dtype).eps
    diagonal = jnp.maximum(short * short, floor)
    scaled = row[..., :, None] * gram * row[..., None, :]
    scaled = scaled + diagonal[..., :, None] * jnp.eye(m, dtype=gram.dtype)
    return jnp.linalg.cholesky(scaled, symmetrize_input=False), row, short, root
