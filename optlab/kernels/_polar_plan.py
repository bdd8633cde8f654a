"""Which form of the polar iteration is cheapest, and which ones are safe."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optlab.kernels import _polar_coefficients
from optlab.kernels._polar_coefficients import PolarTable

FORMS = ("standard", "gram")

# Time of a FLOP with operands of a dtype, in units of one with float32 operands:
# measured on a CPU with AVX-512 BF16; on GPU and TPU from data sheets (float32 at
# highest precision is six bfloat16 passes on a TPU), not measured.
FLOP_TIME = {
    "cpu": {"bfloat16": 0.5, "float16": 1.0, "float32": 1.0, "float64": 2.0},
    "gpu": {"bfloat16": 0.07, "float16": 0.07, "float32": 1.0, "float64": 2.0},
    "tpu": {"bfloat16": 0.17, "float16": 1.0, "float32": 1.0, "float64": 20.0},
}

# Rounding may move the result by this much, in units of its largest singular value.
# Measured beside it: up to 0.18 no table ended above 1.22, from 0.39 on one did.
TOLERATED = 0.2


@dataclasses.dataclass(frozen=True)
class PolarPlan:
    """How a stack of matrices of one shape goes through a polar iteration.

    Attributes:
      form: 'standard' or 'gram'.
      restarts: Steps, from 0, before which the Gram form applies what it has to X.
      operand_dtype: Dtype of the operands of products with X.
      square_dtype: Dtype of the operands of products of Gram matrices.
      state_dtype: Dtype of X, G and Q between the products.
      symmetric: Levels of blocks of the products whose result is symmetric.
      flops: FLOPs of all products, for one matrix.
      time: The same in units of one FLOP in float32 on the platform.
    """

    form: str
    restarts: tuple[int, ...]
    operand_dtype: str
    square_dtype: str
    state_dtype: str
    symmetric: int
    flops: float
    time: float


def polar_plan(
    shape: tuple[int, ...],
    coefficients: str | PolarTable | Sequence[float] | Sequence[Sequence[float]] = (
        "jordan"
    ),
    *,
    steps: int | None = None,
    form: str = "auto",
    dtype: jax.typing.DTypeLike = "float32",
    compute_dtype: jax.typing.DTypeLike | None = None,
    square_dtype: jax.typing.DTypeLike | None = None,
    symmetric: int = 0,
    platform: str | None = None,
) -> PolarPlan:
    """Chooses the form of `newton_schulz`: what it will run, and at what cost.

    For m <= n, r = n / m and quintic steps without blocks, in units of m^3 FLOPs,

        standard  steps (4 r + 2)
        gram      4 r (1 + restarts) + 8 steps - 6 - 6 restarts

    and each product counts as many times as its operands' dtype is slower than float32
    on the platform (`FLOP_TIME` in the source). 'auto' takes the least time, and of
    equal ones the standard form. In float32 that is the Gram form from r = 1.5 on.

    The Gram form keeps G by a recurrence and X's factor as Q, so it rounds more. It is
    run only where the table's numbers say that this is harmless, with u the unit
    roundoff of a dtype, and else refused:

        u_operand ||Q|| <= 0.2             by restarts, as few as do; Q simulated for
                                           eigenvalues s^2 - u_square / 8, s in [0, 1]
                                           (rounding an m x m matrix of norm 1 moves
                                           them by about 1.2 u / sqrt(m))
        u_square (|a| + |b| + |c|) <= 0.2  and, if below float32, <= the margin by
                                           which singular values may be too large
                                           before every step and yet end below 1.3

    Args:
      shape: Shape of the array, (..., m, n); leading axes do not matter.
      coefficients: As for `newton_schulz`.
      steps: As for `newton_schulz`.
      form: 'auto', 'standard' or 'gram'.
      dtype: Dtype of the matrices.
      compute_dtype: Dtype of the operands of products with X; None means float32, or
        float64 for float64.
      square_dtype: Dtype of the operands of products of Gram matrices; None means
        compute_dtype where it is safe and float32 elsewhere.
      symmetric: Levels of 2 x 2 blocks, 0 or more, by which a symmetric result saves
        its upper corner: factors 3/4, 5/8, ... on these products.
      platform: 'cpu', 'gpu' or 'tpu'; None means JAX's default backend. Another one
        is taken for a GPU.

    Returns:
      The plan.

    Raises:
      ValueError: If an argument is unknown or the wish is unsafe.

    Example:
      >>> from optlab import kernels
      >>> for n in (256, 1024):
      ...     plan = kernels.polar_plan((256, n), platform="cpu")
      ...     print(plan.form, plan.flops / 256**3)
      standard 30.0
      gram 50.0

    Source:
      Dao-AILab, "Gram Newton-Schulz", 2025: the form and its restarts, placed by
      simulation. Differs from the authors' code: theirs minimises cond(Q), always has a
      restart, runs in float16 and switches at any n > m; the bounds are our own.
    """
    table = _polar_coefficients.polar_table(coefficients, steps)
    platform = platform or jax.default_backend()
    platform = platform if platform in FLOP_TIME else "gpu"
    if form != "auto" and form not in FORMS:
        raise ValueError(f"newton_schulz: form {form!r} is not 'auto' or in {FORMS}")
    if not isinstance(symmetric, int) or symmetric < 0:
        raise ValueError(
            f"newton_schulz: symmetric counts levels of blocks, got {symmetric!r}"
        )
    wide = jnp.promote_types(dtype, jnp.float32)
    operand = wide if compute_dtype is None else jnp.dtype(compute_dtype)
    for x in (operand, operand if square_dtype is None else jnp.dtype(square_dtype)):
        if x.name not in FLOP_TIME["cpu"]:
            raise ValueError(
                f"newton_schulz: products have operands in {[*FLOP_TIME['cpu']]}, got"
                f" {x.name}"
            )
    m, n = sorted(shape[-2:])
    plans, refusals = [], []
    for candidate in FORMS if form == "auto" else (form,):
        if square_dtype is None:
            squares = dict.fromkeys((operand, jnp.promote_types(operand, jnp.float32)))
        else:
            squares = (jnp.dtype(square_dtype),)
        for square in squares:
            found = _restarts(table, candidate, operand, square)
            if isinstance(found, str):
                refusals.append(found)
                continue
            flops, time = _cost(
                table, candidate, found, (m, n), symmetric, platform, operand, square
            )
            state = jnp.promote_types(wide, operand)
            names = operand.name, square.name, state.name
            plans.append(PolarPlan(candidate, found, *names, symmetric, flops, time))
    if not plans:
        raise ValueError(f"newton_schulz: {refusals[0]}")
    return min(plans, key=lambda plan: plan.time)


def _cost(table, form, restarts, shape, symmetric, platform, operand, square):
    """Returns FLOPs and time of all products for one matrix, m <= n."""
    m, n = shape
    lengths = [len(row) for row in table.rows]
    # Products of small squares: those of each polynomial, and in the Gram form one
    # where Q has a factor already and two for the next Gram matrix.
    squares = sum(length // 2 for length in lengths)
    passes = len(lengths)
    if form == "gram":
        passes = 1 + len(restarts)
        squares += 3 * (len(lengths) - passes)
    share = 0.5 + 0.5**symmetric / 2
    rectangular = passes * 2 * m * m * n * (1 + share)
    small = squares * 2 * m**3 * share
    speed = FLOP_TIME[platform]
    time = rectangular * speed[operand.name] + small * speed[square.name]
    return rectangular + small, time


@functools.cache
def _restarts(table, form, operand, square) -> tuple[int, ...] | str:
    """Returns the fewest restarts that make a form safe, or why none do."""
    unit = {x: float(jnp.finfo(x).eps) / 2 for x in (operand, square)}
    noise = unit[square] * max(sum(map(abs, row)) for row in table.rows)
    bound = TOLERATED
    if form == "gram" and jnp.finfo(square).bits < 32:
        bound = min(bound, _margin(table))
    if noise > bound:
        return (
            f"products of Gram matrices in {square.name} are unsafe with table"
            f" {table.name!r} in the {form} form: they may move a singular value by"
            f" {noise:.2g}, it stands {bound:.2g}. Use square_dtype='float32'."
        )
    if form == "standard":
        return ()
    for count in range(len(table.rows)):
        choices = itertools.combinations(range(1, len(table.rows)), count)
        # Of equal ones the later: a restart repairs what has gathered before it.
        size, late = min(
            (_largest_factor(table, c, unit[square] / 8), tuple(-k for k in c))
            for c in choices
        )
        if size * unit[operand] <= TOLERATED:
            return tuple(-k for k in late)
    return (
        f"products in {operand.name} are unsafe with table {table.name!r} in the gram"
        " form, with any restarts. Use form='standard'."
    )


def _largest_factor(
    table: PolarTable, restarts: tuple[int, ...], shift: float
) -> float:
    """Simulates the spectral norm of Q, the largest between restarts, in float64."""
    s = np.concatenate([[0.0], np.geomspace(1e-10, 1.0, 1001) / table.norm_factor])
    largest, q, r = 1.0, np.ones_like(s), s * s - shift
    with np.errstate(over="ignore", invalid="ignore"):
        for k, row in enumerate(table.rows):
            if k in restarts:
                s, q = s * q, np.ones_like(s)
                r = s * s - shift
            factor = np.polynomial.polynomial.polyval(r, row)
            q, r = q * factor, r * factor**2
            largest = max(largest, float(np.nan_to_num(np.abs(q), nan=np.inf).max()))
    return largest


def _margin(table: PolarTable) -> float:
    """By how much all singular values may grow before every step, to end below 1.3."""
    margins = np.arange(0.1, 0.0, -0.001)
    high = np.full(margins.shape, 1.0 / table.norm_factor)
    for row in table.rows:
        inputs = np.linspace(0.0, high * (1 + margins), 1001)
        highest = np.abs(_polar_coefficients.image(inputs, (row,))).max(axis=0)
        high = np.minimum(highest, 1e3)  # lost already; keeps the next step finite
    kept = margins[high <= 1.3]
    return float(kept.max()) if kept.size else 0.0
