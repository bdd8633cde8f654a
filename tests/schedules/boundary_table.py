"""Published values of schedules at their boundaries: W = 100, T = 1000, P = 1e-3.

Each row: the schedule, and its value at some steps, to seven digits.
"""

from optlab import schedules
from optlab.schedules import shapes

PEAK, FLOOR = 1e-3, 1e-4
RUN = {"total_steps": 1000, "warmup_steps": 100}
STEPS = (0, 50, 100, 500, 550, 1000, 1100)
TAIL_STEPS = (500, 800, 850, 900, 950, 1000, 1100)


def falling(shape, end_value):
    """The whole of the run after the warm-up is the decay."""
    return schedules.wsd(PEAK, **RUN, decay_steps=900, decay=shape, end_value=end_value)


def tail(shape, end_value):
    """The decay takes the last 200 steps."""
    return schedules.wsd(PEAK, **RUN, decay_steps=200, decay=shape, end_value=end_value)


def uba(phi):
    return falling(shapes.moebius(phi / 2, shapes.cosine), 0.0)


def _rise(half, middle, end):
    return dict(zip(STEPS, (0, 5e-4, PEAK, half, middle, end, end), strict=True))


def _tail(first, second, third, end):
    values = (PEAK, PEAK, first, second, third, end, end)
    return dict(zip(TAIL_STEPS, values, strict=True))


TABLE = {
    "cosine to a floor": (
        schedules.cosine(PEAK, **RUN, end_value=FLOOR),
        _rise(6.281417e-4, 5.5e-4, FLOOR),
    ),
    "linear": (schedules.linear(PEAK, **RUN), _rise(5.555556e-4, 5e-4, 0)),
    "linear to a floor": (
        schedules.linear(PEAK, **RUN, end_value=FLOOR),
        _rise(6e-4, 5.5e-4, FLOOR),
    ),
    "rex": (falling(shapes.moebius(0.5), 0.0), _rise(7.142857e-4, 6.666667e-4, 0)),
    "rex with k of a tenth": (
        falling(shapes.moebius(0.1), 0.0),
        _rise(9.259259e-4, 9.090909e-4, 0),
    ),
    "cosine power 2": (
        falling(shapes.exponential(2.0, shapes.cosine), FLOOR),
        _rise(5.517431e-4, 4.727922e-4, FLOOR),
    ),
    "cosine power 10": (
        falling(shapes.exponential(10.0, shapes.cosine), FLOOR),
        _rise(3.862105e-4, 3.162278e-4, FLOOR),
    ),
    "uba 0.25": (uba(0.25), _rise(9.191083e-4, 8.888889e-4, 0)),
    "uba 0.5": (uba(0.5), _rise(8.503242e-4, 8e-4, 0)),
    "uba 1": (uba(1), _rise(7.396208e-4, 6.666667e-4, 0)),
    "uba 2": (uba(2), _rise(5.868241e-4, 5e-4, 0)),
    "uba 5": (uba(5), _rise(3.622899e-4, 2.857143e-4, 0)),
    "wsd linear": (tail(shapes.linear, 0.0), _tail(7.5e-4, 5e-4, 2.5e-4, 0)),
    "wsd linear to a floor": (
        tail(shapes.linear, FLOOR),
        _tail(7.75e-4, 5.5e-4, 3.25e-4, FLOOR),
    ),
    "wsd cosine to a floor": (
        tail(shapes.cosine, FLOOR),
        _tail(8.681981e-4, 5.5e-4, 2.318019e-4, FLOOR),
    ),
    "wsd 1-sqrt": (
        tail(shapes.one_minus_sqrt, 0.0),
        _tail(5e-4, 2.928932e-4, 1.339746e-4, 0),
    ),
    "wsd 1-sqrt to a floor": (
        tail(shapes.one_minus_sqrt, FLOOR),
        _tail(5.5e-4, 3.636039e-4, 2.205771e-4, FLOOR),
    ),
    # P (F / P)^q: a geometric decay is the exponential map of order P / F.
    "wsd exponential": (
        tail(shapes.exponential(PEAK / FLOOR), FLOOR),
        _tail(5.623413e-4, 3.162278e-4, 1.778279e-4, FLOOR),
    ),
    # 1 / (q / F + (1 - q) / P): the Moebius map of k = P / F.
    "wsd inverse": (
        tail(shapes.moebius(PEAK / FLOOR), FLOOR),
        _tail(3.076923e-4, 1.818182e-4, 1.290323e-4, FLOOR),
    ),
    # 2 x 0.5^q - 1: the exponential map of order 2.
    "wsd half-life": (
        tail(shapes.exponential(2.0), FLOOR),
        _tail(7.136135e-4, 4.727922e-4, 2.702864e-4, FLOOR),
    ),
}
