"""Coefficients of odd iterations for the polar factor, as validated data.

One step maps each singular value s to an odd polynomial: a s + b s^3 + c s^5, or one of
degree nine. A table is a list of such rows with the interval of inputs that it is meant
for and the band of outputs that it promises there; both are checked when it is built.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Row = tuple[float, ...]

# Coefficients of a row: degrees five and nine, the odd degrees that one and two
# products of small square matrices reach beside their application.
ROW_LENGTHS = (3, 5)
PRESCALES = ("frobenius", "aol", "schatten", "schatten8")

# A normalised matrix has a largest singular value of 1 up to rounding. One unit of
# bfloat16 is the most by which a rounded norm can be short.
ROUNDING = 2.0**-7


def image(s: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """Applies the steps of a table, in order, to singular values in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        for row in rows:
            s = s * np.polynomial.polynomial.polyval(s * s, row)
    return s


@dataclasses.dataclass(frozen=True)
class PolarTable:
    """Coefficients of a polar iteration and what they promise.

    Attributes:
      name: Name by which kernels look the table up.
      rows: Coefficients of s, s^3, s^5, ..., three or five of them, one row a step.
      interval: Singular values, after scaling, for which the band is promised.
      band: Smallest and largest singular value of the result on the interval.
      source: Where the numbers come from.
      norm_factor: Factor on the norm by which a matrix is divided beforehand, so that
        scaled singular values are at most 1 / norm_factor.
      prescale: Norm that the numbers were made for, see `newton_schulz`.

    Raises:
      ValueError: If a number is not finite or the table leaves its band.
    """

    name: str
    rows: tuple[Row, ...]
    interval: tuple[float, float]
    band: tuple[float, float]
    source: str
    norm_factor: float = 1.0
    prescale: str = "frobenius"

    def __post_init__(self) -> None:
        """Checks the promise on a fine grid of the interval."""
        shaped = self.rows and all(len(row) in ROW_LENGTHS for row in self.rows)
        if not shaped or not all(np.isfinite(row).all() for row in self.rows):
            raise ValueError(
                f"polar table {self.name!r}: rows must be triples of finite numbers,"
                f" or five for a step of degree nine; got {self.rows!r}"
            )
        if self.prescale not in PRESCALES:
            raise ValueError(
                f"polar table {self.name!r}: prescale {self.prescale!r} is not in"
                f" {PRESCALES}"
            )
        low, high = self.interval
        if not 0 < low < high:
            raise ValueError(
                f"polar table {self.name!r}: interval must satisfy 0 < low < high, got"
                f" {self.interval}"
            )
        values = image(np.geomspace(low, high, 4001), self.rows)
        inside = self.band[0] <= values.min() and values.max() <= self.band[1]
        if not (np.isfinite(values).all() and inside):
            raise ValueError(
                f"polar table {self.name!r}: maps [{low}, {high}] to"
                f" [{values.min():.6g}, {values.max():.6g}], outside its band"
                f" {self.band}. Use a narrower interval, a wider band or other"
                " coefficients."
            )

    @functools.cached_property
    def bounded_to(self) -> float:
        """Largest input up to which no result exceeds 2 (searched up to 1.25).

        Beyond it a step overshoots the next step's interval and the iteration runs
        away: the difference between a rounding error and 1e20.
        """
        inputs = np.linspace(0.0, 1.25, 125_001)
        wild = ~(np.abs(image(inputs, self.rows)) <= 2.0)
        return float(inputs[max(int(np.argmax(wild)) - 1, 0)] if wild.any() else 1.25)

    @property
    def survives_rounding(self) -> bool:
        """Whether a normalised matrix whose norm was rounded down stays bounded."""
        return (1.0 + ROUNDING) / self.norm_factor <= self.bounded_to


def _best_odd(low: float, high: float, terms: int) -> Row:
    """Minimax odd polynomial approximation of 1 on [low, high], by Remez exchange."""
    powers = 2 * np.arange(terms) + 1
    if ((high - low) / (high + low)) ** terms <= 1e-13:
        # The exchange is ill-conditioned here; this is its limit (Newton-Schulz and its
        # kin): s / sqrt(1 - (1 - s^2)) as a series in 1 - s^2, for s / high.
        series = np.zeros(1)
        for i in reversed(range(terms)):
            series = np.polynomial.polynomial.polymul(series, [1, -1])
            series[0] += math.comb(2 * i, i) / 4**i
        return tuple(float(x) for x in series[:terms] / high**powers)
    turns = np.cos(np.pi * np.arange(terms, -1, -1) / terms)
    points = (high + low) / 2 + (high - low) / 2 * turns
    signs = (-1.0) ** np.arange(terms + 1)
    error = math.inf
    while True:
        # Equal ripple at terms + 1 points: p = 1 - e, 1 + e, 1 - e, ...
        system = np.column_stack([points[:, None] ** powers, signs])
        *row, new_error = np.linalg.solve(system, np.ones(terms + 1))
        if abs(error - new_error) <= 1e-15:
            return tuple(float(x) for x in row)
        error = new_error
        # The inner extrema: roots of p' in s^2.
        squares = np.roots((powers * row)[::-1])
        points[1:-1] = np.sqrt(np.sort(squares.real))


def polar_express_rows(
    lower: float = 1e-3, steps: int = 5, *, safety: float = 1.02, cushion: float = 0.02
) -> tuple[Row, ...]:
    """Generates Polar Express coefficients: the greedy minimax quintic of each step.

    Step by step, p is the odd quintic nearest to 1 on [max(l, cushion u), u], where
    [l, u] holds the singular values so far; all steps but the last are then made to
    tolerate inputs up to `safety` times too large, p(x) -> p(x / safety).

    Args:
      lower: Smallest singular value to serve, relative to the largest, in (0, 1).
      steps: Number of steps, at least 1.
      safety: Margin for rounding, at least 1; 1 gives the unsafe coefficients.
      cushion: Keeps p from ever being small inside the interval, in [0, 1).

    Returns:
      One triple (a, b, c) a step, Python floats.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> from optlab import kernels
      >>> print([round(c, 6) for c in kernels.polar_express_rows()[0]])
      [8.156555, -22.483293, 15.87877]

    Source:
      Amsel, Persson, Musco, Gower, "The Polar Express", 2025, arXiv:2505.16932. Agrees
      with the published tables to 1e-12 (safety 1.02, cushion 0.02; and safety 1,
      cushion 0.02407327424182761). No difference found.
    """
    if steps < 1:
        raise ValueError(f"polar_express_rows: steps must be 1 or more, got {steps}")
    return minimax_rows(lower, (5,) * steps, safety=safety, cushion=cushion)


def minimax_rows(
    lower: float,
    degrees: Sequence[int],
    *,
    safety: float = 1.02,
    cushion: float = 0.02,
) -> tuple[Row, ...]:
    """Generates the greedy minimax steps of given degrees, five or nine.

    Polar Express with steps of mixed degree. A step of degree nine costs one product of
    small square matrices more than a quintic and does more with it: four steps (9, 9,
    9, 5) cost what five quintics cost and reach twice as far down.

    Args:
      lower: Smallest singular value to serve, relative to the largest, in (0, 1).
      degrees: Degree of each step, 5 or 9.
      safety: Margin for rounding, at least 1; 1 gives the unsafe coefficients.
      cushion: Keeps p from ever being small inside the interval, in [0, 1).

    Returns:
      One row of coefficients of s, s^3, s^5, ... a step, Python floats.

    Raises:
      ValueError: If an argument is out of range.

    Example:
      >>> from optlab import kernels
      >>> for degrees in ((5, 5, 5, 5, 5), (9, 9, 9, 5)):
      ...     rows, s = kernels.minimax_rows(1e-3, degrees, safety=1), 1e-3
      ...     for row in rows:
      ...         s = sum(c * s ** (2 * i + 1) for i, c in enumerate(row))
      ...     print(f"{s:.3f}")
      0.879
      0.930

    Source:
      The greedy composition, and that it is the best one for any degrees, is Amsel,
      Persson, Musco, Gower, "The Polar Express", 2025, arXiv:2505.16932; their tables
      have degree five only. The choice of degrees by products is our own.
    """
    if not 0 < lower < 1:
        raise ValueError(f"minimax_rows: lower must be in (0, 1), got {lower}")
    if not degrees or any(degree not in (5, 9) for degree in degrees):
        raise ValueError(f"minimax_rows: degrees must be 5 or 9, got {tuple(degrees)}")
    if safety < 1 or not 0 <= cushion < 1:
        raise ValueError(
            "minimax_rows: safety must be at least 1 and cushion in [0, 1), got"
            f" safety={safety} and cushion={cushion}"
        )
    low, high, rows = lower, 1.0, []
    for step, degree in enumerate(degrees):
        row = _best_odd(max(low, cushion * high), high, (degree + 1) // 2)
        if cushion * high > low:
            # The interval was cut short: centre the images of its true ends on 1.
            ends = image(np.array([low, high]), (row,))
            row = tuple(float(2 / ends.sum()) * coefficient for coefficient in row)
        if step < len(degrees) - 1:
            row = tuple(c / safety ** (2 * i + 1) for i, c in enumerate(row))
        low = float(image(np.array([low]), (row,))[0])
        high = 2.0 - low
        rows.append(row)
    return tuple(rows)


TABLES = {
    table.name: table
    for table in (
        PolarTable(
            name="jordan",
            rows=((3.4445, -4.7750, 2.0315),) * 5,
            interval=(0.01, 1.0),
            band=(0.6818, 1.1345),
            source="K. Jordan et al., Muon, 2024; does not converge to 1 by design",
        ),
        PolarTable(
            name="youjiacheng",
            rows=(
                (4.0848, -6.8946, 2.9270),
                (3.9505, -6.3029, 2.6377),
                (3.7418, -5.5913, 2.3037),
                (2.8769, -3.1427, 1.2046),
                (2.8366, -3.0525, 1.2012),
            ),
            interval=(0.01, 1.0),
            band=(0.9777, 1.0319),
            source="J. You, 2025, as in Optax's preset 'dion'",
        ),
        PolarTable(
            name="polar_express",
            rows=polar_express_rows(),
            interval=(0.003, 1 / 1.02),
            band=(0.8588, 1.1412),
            source="Amsel et al., arXiv:2505.16932; safety 1.02, cushion 0.02",
            norm_factor=1.02,
        ),
        PolarTable(
            name="turbo",
            rows=(
                (4.6051, -9.6552, 5.6769),
                (4.7505, -6.0861, 2.1790),
                (2.7763, -2.3190, 0.5523),
                (2.4231, -2.2861, 0.8193),
            ),
            interval=(0.01, 1.0),
            band=(0.9409, 1.0501),
            source="Boissin et al., Turbo-Muon, 2025, after its row scaling",
            prescale="aol",
        ),
        PolarTable(
            name="accurate",
            rows=minimax_rows(7.6e-4, (9, 9, 9, 5), safety=1.01),
            interval=(7.6e-4, 1 / 1.01),
            band=(0.8713, 1.1287),
            source="minimax_rows(7.6e-4, (9, 9, 9, 5), safety=1.01): our own choice",
            norm_factor=1.01,
            prescale="schatten8",
        ),
    )
}


def polar_table(
    coefficients: str | PolarTable | Sequence[float] | Sequence[Sequence[float]],
    steps: int | None = None,
) -> PolarTable:
    """Looks up, builds or shortens a table of coefficients, and checks it.

    Args:
      coefficients: Name of a table ('jordan', 'youjiacheng', 'polar_express', 'turbo',
        'accurate'), a `PolarTable`, one row (a, b, c) for every step, or a row for each
        step; five numbers are a step of degree nine.
      steps: Number of steps. None means the table's own number, or 5 for one row.
        A table with one row for all steps takes any number; another table only
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
        if coefficients not in TABLES:
            known = ", ".join(sorted(TABLES))
            raise ValueError(
                f"newton_schulz: no coefficient table {coefficients!r}; known: {known}"
            )
        table = TABLES[coefficients]
    elif isinstance(coefficients, PolarTable):
        table = coefficients
    else:
        table = PolarTable(
            name="custom",
            rows=_given_rows(coefficients, steps),
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
            prescale=table.prescale,
        )
    if not table.survives_rounding:
        raise ValueError(
            f"newton_schulz: table {table.name!r} stays bounded only up to"
            f" {table.bounded_to:.4g}, but a matrix of rank one has a scaled singular"
            f" value of {1 / table.norm_factor:.4g} and rounding adds to it. Use"
            " kernels.polar_express_rows(safety=1.02), PolarTable(norm_factor=1.02)."
        )
    return table


def _given_rows(coefficients: Any, steps: int | None) -> tuple[Row, ...]:
    """Reads one row for all steps, or one row a step."""
    try:
        single = all(np.ndim(c) == 0 for c in coefficients)
        times = 5 if steps is None else max(steps, 1)
        rows = [coefficients] * times if single else coefficients
        read = tuple(tuple(float(c) for c in row) for row in rows)
        if not read or any(
            len(row) not in ROW_LENGTHS or not np.isfinite(row).all() for row in read
        ):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            "newton_schulz: coefficients must be a name, a PolarTable, a finite triple"
            f" (a, b, c), five of them, or one such row a step; got {coefficients!r}"
        ) from None
    return read
