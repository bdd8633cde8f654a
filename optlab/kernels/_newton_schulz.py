"""Newton-Schulz iteration for the polar factor of a matrix."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optlab.kernels import _polar_coefficients
from optlab.kernels._polar_coefficients import PolarTable

PRESCALES = ("frobenius", "aol", "schatten")


def polar_table(
    coefficients: str | PolarTable | Sequence[float] | Sequence[Sequence[float]],
    steps: int | None = None,
) -> PolarTable:
    """Looks up, builds or shortens a table of coefficients, and checks it.

    Args:
      coefficients: Name of a table ('jordan', 'youjiacheng', 'polar_express'), a
        `PolarTable`, one triple (a, b, c) for every step, or a triple for each step.
      steps: Number of steps. None means the table's own number, or 5 for one triple.
        A table with one triple for all steps takes any number; another table only
        its own, because its last steps finish what the first ones began.

    Returns:
      A table with exactly `steps` rows.

    Raises:
      ValueError: If the name is unknown, steps do not fit, or the coefficients blow
        up on inputs that rounding pushes above 1.

    Example:
      >>> from optlab import kernels
      >>> len(kernels.polar_table("jordan", steps=7).rows)
      7

    Source:
      Tables: see `PolarTable.source` of each.
    """
    if isinstance(coefficients, str):
        if coefficients not in _polar_coefficients.TABLES:
            known = ", ".join(sorted(_polar_coefficients.TABLES))
            raise ValueError(
                f"newton_schulz: no coefficient table {coefficients!r}; known: {known}"
            )
        table = _polar_coefficients.TABLES[coefficients]
    elif isinstance(coefficients, PolarTable):
        table = coefficients
    else:
        rows = np.asarray(coefficients, dtype=np.float64)
        if rows.shape == (3,):
            rows = np.tile(rows, (5 if steps is None else max(steps, 1), 1))
        if rows.ndim != 2 or rows.shape[-1] != 3 or not np.isfinite(rows).all():
            raise ValueError(
                "newton_schulz: coefficients must be a name, a PolarTable, a finite"
                f" triple (a, b, c) or one triple a step; got {coefficients!r}"
            )
        table = PolarTable(
            name="custom",
            rows=tuple((float(a), float(b), float(c)) for a, b, c in rows),
            interval=(0.1, 1.0),
            band=(-math.inf, math.inf),
            source="given by the caller",
        )
    if steps is not None and steps != len(table.rows):
        if steps < 1 or len(set(table.rows)) != 1:
            raise ValueError(
                f"newton_schulz: table {table.name!r} has {len(table.rows)} steps of"
                f" its own, got steps={steps}. Generate one of that length, for example"
                f" kernels.polar_express_rows(steps={max(steps, 1)})."
            )
        # Another number of steps leaves another band: promise none.
        table = PolarTable(
            name=table.name,
            rows=table.rows[:1] * steps,
            interval=table.interval,
            band=(-math.inf, math.inf),
            source=table.source,
            norm_factor=table.norm_factor,
        )
    if not table.survives_rounding:
        raise ValueError(
            f"newton_schulz: table {table.name!r} stays bounded only up to"
            f" {table.bounded_to:.4g}, but a matrix of rank one has a scaled singular"
            f" value of {1 / table.norm_factor:.4g} and rounding adds to it. Use"
            " kernels.polar_express_rows(safety=1.02), PolarTable(norm_factor=1.02)."
        )
    return table


def newton_schulz(
    x: jax.Array,
    coefficients: str | PolarTable | Sequence[float] | Sequence[Sequence[float]] = (
        "jordan"
    ),
    *,
    steps: int | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
    prescale: str = "frobenius",
    eps: float | jax.Array = 0.0,
) -> jax.Array:
    """Replaces the singular values of a matrix by values near 1.

    Approximates the polar factor U V^T of X = U S V^T with matrix products alone.
    With G the Gram matrix on the shorter side, each step is (X wide; tall alike)

        X_0     = X / (c ||X||_F + eps)               c = the table's norm_factor
        G       = X_k X_k^T
        X_{k+1} = a_k X_k + (b_k G + c_k G^2) X_k

    The largest entry is divided out first, so entries of 1e30 and 1e-30 give what
    entries of 1 give. A zero matrix gives zero, an empty one itself; a matrix with an
    infinite or undefined entry gives NaN in that matrix and no other.
    Cost: steps (4 m^2 n + 2 m^3) FLOPs for m <= n.

    Args:
      x: Array, shape (..., m, n), floating; leading axes are batch.
      coefficients: A table's name, a `PolarTable`, one triple for all steps, or one
        triple a step. 'jordan' (five steps into [0.68, 1.13], Muon's own),
        'youjiacheng' ([0.978, 1.032] for s >= 0.01) or 'polar_express' ([0.859, 1.141]
        for s >= 0.003), s relative to the scale below.
      steps: Number of steps; None means the table's own.
      compute_dtype: Dtype of the operands of each product; None means float32, or
        float64 for float64 input. Products are accumulated in float32 or wider.
      prescale: How the largest singular value is brought below 1. 'frobenius' divides
        by the Frobenius norm; 'schatten' by the Schatten-4 norm, which is nearer to
        the spectral norm; 'aol' scales each row (of a wide matrix) by the root of its
        absolute row sum of G, which is nearest but not invariant under rotations, so
        its limit is not the polar factor of X.
      eps: Added to the norm, in units of x; with it tiny matrices shrink to zero.

    Returns:
      Array, shape (..., m, n), dtype of x.

    Raises:
      ValueError: If x has fewer than two axes, or coefficients, steps or prescale
        are unknown or unsafe.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.diag(jnp.array([3.0, 4.0]))
      >>> for name in ("jordan", "polar_express"):
      ...     a, b = jnp.diag(kernels.newton_schulz(x, name))
      ...     print(f"{name}: {a:.4f} {b:.4f}")
      jordan: 0.7229 1.1192
      polar_express: 0.9468 0.8783

    Source:
      K. Jordan et al., "Muon", 2024; Boissin et al., "Turbo-Muon" (AOL), 2025;
      Schatten scaling as in Optax. Differs from the authors' code: they add 1e-7 to
      the norm (pass eps=1e-7), iterate in bfloat16, and have no division by the
      largest entry.
    """
    if x.ndim < 2:
        raise ValueError(
            f"newton_schulz: needs an array of two or more axes, got shape {x.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"newton_schulz: needs a floating dtype, got {x.dtype}")
    if prescale not in PRESCALES:
        raise ValueError(f"newton_schulz: prescale {prescale!r} is not in {PRESCALES}")
    table = polar_table(coefficients, steps)
    if x.size == 0:
        return x
    if x.ndim > 2 and math.prod(x.shape[:-2]) == 1:
        # One matrix: a batched product of batch one costs time and memory.
        plain = newton_schulz(
            x.reshape(x.shape[-2:]),
            table,
            compute_dtype=compute_dtype,
            prescale=prescale,
            eps=eps,
        )
        return plain.reshape(x.shape)
    state_dtype = jnp.promote_types(x.dtype, jnp.float32)
    if compute_dtype is None:
        compute_dtype = state_dtype
    state_dtype = jnp.promote_types(state_dtype, compute_dtype)

    def product(indices: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(
            indices,
            left.astype(compute_dtype),
            right.astype(compute_dtype),
            # On TPU the default would round float32 operands to bfloat16.
            precision="highest",
            preferred_element_type=state_dtype,
        )

    tall = x.shape[-2] > x.shape[-1]

    def gram(y: jax.Array) -> jax.Array:
        return product("...ki,...kj->...ij" if tall else "...ik,...jk->...ij", y, y)

    y, g = _prescaled(x.astype(state_dtype), table, prescale, eps, tall, gram)
    for a, b, c in table.rows:
        g = gram(y) if g is None else g
        g = b * g + c * product("...ik,...kj->...ij", g, g)
        y = a * y + (
            product("...ik,...kj->...ij", y, g)
            if tall
            else product("...ik,...kj->...ij", g, y)
        )
        g = None
    return y.astype(x.dtype)


def _prescaled(x, table, prescale, eps, tall, gram):
    """Scales x to a spectral norm of at most 1 / norm_factor.

    Returns the scaled matrix and its Gram matrix, or None where the scale did not
    need it.
    """
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    largest = jnp.where(largest == 0, 1.0, largest)  # zero stays zero, not 0 / 0
    y = x / largest
    eps = eps / largest
    if prescale == "frobenius":
        norm = jnp.sqrt(jnp.sum(y * y, axis=(-2, -1), keepdims=True))
        norm = table.norm_factor * norm + eps
        return y / jnp.where(norm == 0, 1.0, norm), None
    g = gram(y)
    if prescale == "schatten":
        # ||X||_S4^4 = tr(G^2) = ||G||_F^2
        norm = jnp.sqrt(jnp.sqrt(jnp.sum(g * g, axis=(-2, -1), keepdims=True)))
        norm = table.norm_factor * norm + eps
        norm = jnp.where(norm == 0, 1.0, norm)
        return y / norm, g / norm**2
    row = jnp.sqrt(jnp.sum(jnp.abs(g), axis=-1, keepdims=True))
    row = table.norm_factor * row + eps
    row = jnp.where(row == 0, 1.0, row)
    return y / (row.mT if tall else row), g / row / row.mT
