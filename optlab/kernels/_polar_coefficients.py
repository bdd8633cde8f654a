"""Coefficients of odd quintic iterations for the polar factor, as validated data.

One step maps each singular value s to a s + b s^3 + c s^5. A table is a list of such
triples with the interval of inputs that it is meant for and the band of outputs that
it promises there; both are checked when the table is built.
"""

import dataclasses
import functools
import math

import numpy as np

Triple = tuple[float, float, float]

# A normalised matrix has a largest singular value of 1 up to rounding. One unit of
# bfloat16 is the most by which a rounded norm can be short.
ROUNDING = 2.0**-7


def quintic(s: np.ndarray, rows: tuple[Triple, ...]) -> np.ndarray:
    """Applies the steps of a table, in order, to singular values in float64."""
    for a, b, c in rows:
        square = s * s
        s = s * (a + square * (b + square * c))
    return s


@dataclasses.dataclass(frozen=True)
class PolarTable:
    """Coefficients of a polar iteration and what they promise.

    Attributes:
      name: Name by which kernels look the table up.
      rows: Triples (a, b, c), one a step.
      interval: Singular values, after scaling, for which the band is promised.
      band: Smallest and largest singular value of the result on the interval.
      source: Where the numbers come from.
      norm_factor: Factor on the norm by which a matrix is divided beforehand, so that
        scaled singular values are at most 1 / norm_factor.

    Raises:
      ValueError: If a number is not finite or the table leaves its band.
    """

    name: str
    rows: tuple[Triple, ...]
    interval: tuple[float, float]
    band: tuple[float, float]
    source: str
    norm_factor: float = 1.0

    def __post_init__(self) -> None:
        """Checks the promise on a fine grid of the interval."""
        shaped = self.rows and all(len(row) == 3 for row in self.rows)
        if not shaped or not np.isfinite(self.rows).all():
            raise ValueError(
                f"polar table {self.name!r}: rows must be triples of finite numbers,"
                f" got {self.rows!r}"
            )
        low, high = self.interval
        if not 0 < low < high:
            raise ValueError(
                f"polar table {self.name!r}: interval must satisfy 0 < low < high, got"
                f" {self.interval}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            image = quintic(np.geomspace(low, high, 4001), self.rows)
        inside = self.band[0] <= image.min() and image.max() <= self.band[1]
        if not (np.isfinite(image).all() and inside):
            raise ValueError(
                f"polar table {self.name!r}: maps [{low}, {high}] to"
                f" [{image.min():.6g}, {image.max():.6g}], outside its band"
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
        with np.errstate(over="ignore", invalid="ignore"):
            wild = ~(np.abs(quintic(inputs, self.rows)) <= 2.0)
        return float(inputs[max(int(np.argmax(wild)) - 1, 0)] if wild.any() else 1.25)

    @property
    def survives_rounding(self) -> bool:
        """Whether a normalised matrix whose norm was rounded down stays bounded."""
        return (1.0 + ROUNDING) / self.norm_factor <= self.bounded_to


def _best_quintic(low: float, high: float) -> Triple:
    """Minimax odd quintic approximation of 1 on [low, high], by Remez exchange."""
    if low / high >= 1 - 1e-4:
        # The exchange is ill-conditioned here; this is its limit (Newton-Schulz), off
        # by less than 1e-11 on such an interval.
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    error = math.inf
    while True:
        # Equal ripple at four points: p = 1 - e, 1 + e, 1 - e, 1 + e.
        points = np.array([low, q, r, high])
        system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        a, b, c, new_error = np.linalg.solve(system, np.ones(4))
        if abs(error - new_error) <= 1e-15:
            return float(a), float(b), float(c)
        error = new_error
        # The inner extrema solve a + 3 b x^2 + 5 c x^4 = 0.
        root = math.sqrt(9 * b * b - 20 * a * c)
        q = math.sqrt((-3 * b - root) / (10 * c))
        r = math.sqrt((-3 * b + root) / (10 * c))


def polar_express_rows(
    lower: float = 1e-3, steps: int = 5, *, safety: float = 1.02, cushion: float = 0.02
) -> tuple[Triple, ...]:
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
    if not 0 < lower < 1:
        raise ValueError(f"polar_express_rows: lower must be in (0, 1), got {lower}")
    if steps < 1:
        raise ValueError(f"polar_express_rows: steps must be 1 or more, got {steps}")
    if safety < 1 or not 0 <= cushion < 1:
        raise ValueError(
            "polar_express_rows: safety must be at least 1 and cushion in [0, 1), got"
            f" safety={safety} and cushion={cushion}"
        )
    low, high, rows = lower, 1.0, []
    for step in range(steps):
        row = _best_quintic(max(low, cushion * high), high)
        if cushion * high > low:
            # The interval was cut short: centre the images of its true ends on 1.
            ends = quintic(np.array([low, high]), (row,))
            a, b, c = (float(2 / ends.sum()) * coefficient for coefficient in row)
            row = (a, b, c)
        if step < steps - 1:
            row = (row[0] / safety, row[1] / safety**3, row[2] / safety**5)
        low = float(quintic(np.array([low]), (row,))[0])
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
    )
}
