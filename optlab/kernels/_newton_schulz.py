"""Newton-Schulz iteration for the polar factor of a matrix."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from optlab.kernels import _polar_coefficients, _polar_plan
from optlab.kernels._polar_coefficients import PRESCALES, PolarTable, Row
from optlab.kernels._polar_plan import PolarPlan

BATCHINGS = ("auto", "stack", "loop")
Along = tuple[int, tuple[str, ...]]


def newton_schulz(
    x: jax.Array,
    coefficients: str | PolarTable | Sequence[float] | Sequence[Sequence[float]] = (
        "jordan"
    ),
    *,
    steps: int | None = None,
    form: str = "auto",
    compute_dtype: jax.typing.DTypeLike | None = None,
    square_dtype: jax.typing.DTypeLike | None = None,
    symmetric: int = 0,
    prescale: str | None = None,
    eps: float | jax.Array = 0.0,
    batching: str = "auto",
    along: Along | None = None,
) -> jax.Array:
    """Replaces the singular values of a matrix by values near 1.

    Approximates the polar factor U V^T of X = U S V^T with matrix products alone.
    With G the Gram matrix on the shorter side, each step is (X wide; tall alike)

        X_0     = X / (c ||X|| + eps)                 c = the table's norm_factor
        G_k     = X_k X_k^T
        X_{k+1} = q_k(G_k) X_k                        q_k(G) = a I + b G + c G^2

    in the 'standard' form. The 'gram' form gives the same in exact arithmetic, with X
    in two products only, and is cheaper for oblong matrices:

        Q_{k+1} = q_k(G_k) Q_k,  G_{k+1} = G_k q_k(G_k)^2,  result Q X_0

    With form='auto' `polar_plan` chooses by shape, dtype and platform. The largest
    entry is divided out first, so entries of 1e30 and 1e-30 give what entries of 1
    give. A zero matrix gives zero, an empty one itself; a matrix with an infinite or
    undefined entry gives NaN in that matrix and no other.
    Cost, for five quintic steps and m <= n: 20 m^2 n + 10 m^3 FLOPs in the standard
    form, 4 m^2 n + 34 m^3 in the Gram form; `polar_plan` tells it for any arguments.

    Args:
      x: Array, shape (..., m, n), floating; leading axes are batch.
      coefficients: A table's name, a `PolarTable`, one row (a, b, c) for all steps, or
        one row a step. s relative to the scale below, the tables are 'jordan' (five
        steps into [0.68, 1.13] for s >= 0.01, Muon's own); 'youjiacheng' ([0.978,
        1.032] for s >= 0.01); 'polar_express' ([0.859, 1.141] for s >= 0.003); 'turbo'
        (four steps into [0.941, 1.050] for s >= 0.01, made for 'aol'); 'accurate'
        ([0.871, 1.129] for s >= 0.00076, for the cost of the first three).
      steps: Number of steps; None means the table's own.
      form: 'auto', 'standard' or 'gram'.
      compute_dtype: Dtype of the operands of products with X; None means float32, or
        float64 for float64 input. Products are accumulated, and X and G kept, in
        float32 or wider.
      square_dtype: Dtype of the operands of products of Gram matrices; None means
        compute_dtype where the table allows it, see `polar_plan`, else float32.
      symmetric: Levels of 2 x 2 blocks by which products with a symmetric result leave
        out their upper corner. One or two pay for m >= 512.
      prescale: How the largest singular value is brought below 1; None means the
        table's own. 'frobenius' divides by the Frobenius norm; 'schatten' and
        'schatten8' by the Schatten-4 and -8 norms, which are nearer to the spectral
        norm; 'aol' scales each row (of a wide matrix) by the root of its absolute row
        sum of G, which is near too but not invariant under rotations, so its limit is
        not the polar factor of X.
      eps: Added to the norm, in units of x; with it tiny matrices shrink to zero.
      batching: 'stack' takes all matrices through each product together; 'loop' takes
        one after the other and writes it into the stack's own memory, which must not
        be sharded along its leading axes. 'auto' is 'loop' where the only device is a
        CPU, which one matrix keeps busy, and 'stack' elsewhere.
      along: Inside `jax.shard_map`, where x is a part of matrices whose longer side is
        cut: that side, -1 for columns or -2 for rows, and the mesh axes that cut it.
        Gram matrices and norms are then summed over them, see `sharding.along_axis`.

    Returns:
      Array, shape (..., m, n), dtype of x.

    Raises:
      ValueError: If x has fewer than two axes, or an argument is unknown or unsafe.
      TypeError: If x is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from optlab import kernels
      >>> x = jnp.diag(jnp.array([3.0, 4.0]))
      >>> for name in ("jordan", "polar_express", "accurate"):
      ...     a, b = jnp.diag(kernels.newton_schulz(x, name))
      ...     print(f"{name}: {a:.4f} {b:.4f}")
      jordan: 0.7229 1.1192
      polar_express: 0.9468 0.8783
      accurate: 0.9516 1.0715

    Source:
      K. Jordan et al., "Muon", 2024; Boissin et al., "Turbo-Muon" (AOL), 2025;
      Dao-AILab, "Gram Newton-Schulz", 2025; Schatten-4 scaling as in Optax. Differs
      from the authors' code: they add 1e-7 to the norm (pass eps=1e-7), iterate in
      bfloat16 or float16, and have no division by the largest entry. Schatten-8 and
      'accurate' are our own.
    """
    if x.ndim < 2:
        raise ValueError(
            f"newton_schulz: needs an array of two or more axes, got shape {x.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"newton_schulz: needs a floating dtype, got {x.dtype}")
    table = _polar_coefficients.polar_table(coefficients, steps)
    prescale = table.prescale if prescale is None else prescale
    if prescale not in PRESCALES:
        raise ValueError(f"newton_schulz: prescale {prescale!r} is not in {PRESCALES}")
    plan = _polar_plan.polar_plan(
        _whole_shape(x, along),
        table,
        form=form,
        dtype=x.dtype,
        compute_dtype=compute_dtype,
        square_dtype=square_dtype,
        symmetric=symmetric,
    )
    if batching not in BATCHINGS:
        raise ValueError(f"newton_schulz: batching {batching!r} is not in {BATCHINGS}")
    if x.size == 0:
        return x
    lead, matrix = x.shape[:-2], x.shape[-2:]
    one = _polar(plan, table, prescale, along)
    if math.prod(lead) == 1:
        # A batched product of batch one costs time and memory.
        return one(x.reshape(matrix), eps).reshape(x.shape)
    if batching == "auto" and along:
        batching = "stack"  # one sum over the mesh for all matrices
    if batching == "auto":
        alone = jax.default_backend() == "cpu" and jax.device_count() == 1
        whole = not any(jax.typeof(x).sharding.spec)
        batching = "loop" if alone and whole else "stack"
    if batching == "stack":
        return one(x, eps)
    each = jnp.broadcast_to(jnp.asarray(eps, plan.state_dtype), (*lead, 1, 1))
    stack = x.reshape(-1, *matrix), each.reshape(-1, 1, 1)
    body = _in_place(plan, table, prescale, along)
    return jax.lax.fori_loop(0, math.prod(lead), body, stack)[0].reshape(x.shape)


@functools.cache  # one function for one computation: without jit it is compiled once
def _in_place(
    plan: PolarPlan, table: PolarTable, prescale: str, along: Along | None
) -> Callable:
    """Returns the step of a loop that replaces matrix i of a stack."""
    one = _polar(plan, table, prescale, along)

    def body(i, carry):
        stack, eps = carry
        return stack.at[i].set(one(stack[i], eps[i])), eps

    return body


def _whole_shape(x: jax.Array, along: Along | None) -> tuple[int, ...]:
    """Returns the shape of the matrices of which x is a part."""
    shape = list(x.shape)
    if along is None:
        return tuple(shape)
    side, names = along
    if side not in (-1, -2):
        raise ValueError(f"newton_schulz: along cuts side -1 or -2, got {side}")
    shape[side] *= jax.lax.axis_size(names)
    if shape[side] < shape[-3 - side]:
        raise ValueError(
            f"newton_schulz: along must cut the longer side of matrices of shape"
            f" {tuple(shape[-2:])}, got side {side}"
        )
    return tuple(shape)


def _polar(
    plan: PolarPlan, table: PolarTable, prescale: str, along: Along | None = None
) -> Callable:
    """Returns (x, eps) -> the result, for one matrix or for a stack."""
    iterate = _gram if plan.form == "gram" else _standard

    def one(x, eps):
        tall = along[0] == -2 if along else x.shape[-2] > x.shape[-1]
        products = _Products(plan, tall, along[1] if along else ())
        wide = x.astype(plan.state_dtype)
        start = _prescaled(wide, table, prescale, eps, products)
        return iterate(*start, table, products).astype(x.dtype)

    return one


@dataclasses.dataclass(frozen=True)
class _Products:
    """The products of a plan, for a wide X or a tall one, cut along mesh axes."""

    plan: PolarPlan
    tall: bool
    names: tuple[str, ...] = ()

    def gram(self, y: jax.Array) -> jax.Array:
        indices = ("ki", "kj") if self.tall else ("ik", "jk")
        return self.total(self._symmetric(indices, y, y, self.plan.operand_dtype))

    def total(self, part: jax.Array) -> jax.Array:
        """Completes a sum over the longer side."""
        return jax.lax.psum(part, self.names) if self.names else part

    def largest(self, part: jax.Array) -> jax.Array:
        """Completes a maximum."""
        return jax.lax.pmax(part, self.names) if self.names else part

    def apply(self, q: jax.Array, y: jax.Array) -> jax.Array:
        left, right = (y, q) if self.tall else (q, y)
        return self._product(("ik", "kj"), left, right, self.plan.operand_dtype)

    def square(self, g: jax.Array, h: jax.Array) -> jax.Array:
        """Product of two symmetric matrices that commute, so it is symmetric too."""
        return self._symmetric(("ik", "kj"), g, h, self.plan.square_dtype)

    def polynomial(self, row: Row, g: jax.Array, g2: jax.Array | None) -> jax.Array:
        """Returns q(G) - a I for the coefficients (a, b, c, ...) of q."""
        g2 = self.square(g, g) if g2 is None else g2
        z = row[1] * g + row[2] * g2
        return z + self.square(g2, row[3] * g + row[4] * g2) if len(row) == 5 else z

    def _product(self, indices, left, right, dtype) -> jax.Array:
        return jnp.einsum(
            f"...{indices[0]},...{indices[1]}->...ij",
            left.astype(dtype),
            right.astype(dtype),
            # On TPU the default would round float32 operands to bfloat16.
            precision="highest",
            preferred_element_type=self.plan.state_dtype,
        )

    def _symmetric(self, indices, left, right, dtype, level: int = 0) -> jax.Array:
        """Block by block, without the upper corner."""
        axes = indices[0].index("i") - 2, indices[1].index("j") - 2
        half = left.shape[axes[0]] // 2
        if level == self.plan.symmetric or half == 0:
            return self._product(indices, left, right, dtype)
        first, last = jnp.split(left, [half], axes[0])
        before, after = jnp.split(right, [half], axes[1])
        top = self._symmetric(indices, first, before, dtype, level + 1)
        bottom = self._symmetric(indices, last, after, dtype, level + 1)
        corner = self._product(indices, last, before, dtype)
        return jnp.concatenate(
            [
                jnp.concatenate([top, corner.mT], axis=-1),
                jnp.concatenate([corner, bottom], axis=-1),
            ],
            axis=-2,
        )


def _standard(y, g, g2, table: PolarTable, products: _Products) -> jax.Array:
    """Every step multiplies X."""
    for row in table.rows:
        g = products.gram(y) if g is None else g
        y = row[0] * y + products.apply(products.polynomial(row, g, g2), y)
        g = g2 = None
    return y


def _gram(y, g, g2, table: PolarTable, products: _Products) -> jax.Array:
    """Steps multiply Q, a small square; X comes in at the restarts and at the end."""
    restarts = products.plan.restarts
    g = products.gram(y) if g is None else g
    one = jnp.eye(g.shape[-1], dtype=g.dtype)
    q = one
    for k, row in enumerate(table.rows):
        if k in restarts:
            y = products.apply(q, y)
            g = products.gram(y)
        z = products.polynomial(row, g, g2)
        first = k == 0 or k in restarts
        q = row[0] * one + z if first else row[0] * q + products.square(q, z)
        if k + 1 < len(table.rows) and k + 1 not in restarts:
            bent = row[0] * g + products.square(g, z)
            g = row[0] * bent + products.square(z, bent)
        g2 = None
    # A transpose that follows would be moved into the product, and on a CPU there is no
    # half-precision product with both operands transposed.
    return jax.lax.optimization_barrier(products.apply(q, y))


def _prescaled(x, table, prescale, eps, products):
    """Scales x to a spectral norm of at most 1 / norm_factor.

    Returns the scaled matrix, its Gram matrix and that one's square, None for those
    which the scale did not need.
    """
    largest = products.largest(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
    largest = jnp.where(largest == 0, 1.0, largest)  # zero stays zero, not 0 / 0
    y = x / largest
    eps = eps / largest

    def safe(norm):
        norm = table.norm_factor * norm + eps
        return jnp.where(norm == 0, 1.0, norm)

    def length(a):
        return jnp.sqrt(jnp.sum(a * a, axis=(-2, -1), keepdims=True))

    if prescale == "frobenius":
        squares = jnp.sum(y * y, axis=(-2, -1), keepdims=True)
        return y / safe(jnp.sqrt(products.total(squares))), None, None
    g = products.gram(y)
    if prescale == "aol":
        row = safe(jnp.sqrt(jnp.sum(jnp.abs(g), axis=-1, keepdims=True)))
        return y / (row.mT if products.tall else row), g / row / row.mT, None
    if prescale == "schatten":
        # ||X||_S4^4 = tr(G^2) = ||G||_F^2
        norm = safe(jnp.sqrt(length(g)))
        return y / norm, g / norm**2, None
    # ||X||_S8^8 = tr(G^4) = ||G^2||_F^2, of a G of size 1: entries of G^2 may be large.
    size = length(g)
    size = jnp.where(size == 0, 1.0, size)
    g = g / size
    g2 = products.square(g, g)
    norm = safe(jnp.sqrt(jnp.sqrt(length(g2)) * size))
    return y / norm, g * (size / norm**2), g2 * (size / norm**2) ** 2
