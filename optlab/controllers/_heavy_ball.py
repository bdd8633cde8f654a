"""Rate and momentum from the ends of a spectrum."""

import math
from typing import NamedTuple


class HeavyBall(NamedTuple):
    """Constants of gradient descent with momentum.

    Attributes:
      learning_rate: The rate.
      momentum: Decay of the momentum.
    """

    learning_rate: float
    momentum: float


def heavy_ball(largest: float, smallest: float, *, safety: float = 1.0) -> HeavyBall:
    """Sets rate and momentum by the curvature where a run is.

    With L and l the largest and the smallest curvature that matter,

        rate = safety 4 / (sqrt(L) + sqrt(l))^2
        momentum = ((sqrt(L) - sqrt(l)) / (sqrt(L) + sqrt(l)))^2

    On a quadratic with these ends the error falls by the root of the momentum a step,
    which no other constants beat. `probes.top_eigenpairs` finds both ends; measured on
    many examples, the largest is that of a training batch after
    `schedules.curvature_of_batch`. Below zero there is no minimum to go to: take the
    size of the smallest that matters.

    Args:
      largest: Largest curvature L.
      smallest: Smallest curvature l, above 0.
      safety: Factor on the rate, for curvature that rises before the next look.

    Returns:
      The constants, for `optimizers.sgd(rate, momentum=momentum)`.

    Raises:
      ValueError: If the curvatures are no range above 0 or safety is not above 0.

    Example:
      >>> from optlab import controllers
      >>> rate, momentum = controllers.heavy_ball(100.0, 1.0)
      >>> print(f"{rate:.6f} {momentum:.6f}")
      0.033058 0.669421

    Source:
      B. Polyak, 1964; as the learner of Granziol, Zohren, Roberts, 2022,
      arXiv:2006.09092, is said to use it. UNVERIFIED: of that paper the abstract was
      read. The learner is a loop of yours around this and the probe.
    """
    if not 0 < smallest <= largest < math.inf:
        raise ValueError(
            "heavy_ball: smallest and largest must be a range above 0, got"
            f" {smallest} and {largest}"
        )
    if not 0 < safety < math.inf:
        raise ValueError(f"heavy_ball: safety must be above 0, got {safety}")
    high, low = math.sqrt(largest), math.sqrt(smallest)
    rate = safety * 4 / (high + low) ** 2
    return HeavyBall(rate, ((high - low) / (high + low)) ** 2)
