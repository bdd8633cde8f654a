"""Published values of schedules at their boundaries: W = 100, T = 1000, P = 1e-3.

Each row: the schedule, and its value at some steps, to seven digits.
"""

from optlab import schedules
from optlab.schedules import shapes

PEAK, FLOOR = 1e-3, 1e-4
RUN = {"total_steps": 1000, "warmup_steps": 100}
STEPS = (0, 50, 100, 500, 550, 1000, 1100)
TAIL_STEPS = (0, 50, 100, 500, 800, 850, 900, 950, 1000, 1100)


def tail(shape, end_value=0.0):
    """The decay takes the last 200 steps."""
    return schedules.wsd(PEAK, **RUN, decay_steps=200, decay=shape, end_value=end_value)


def _rise(half, middle, end):
    return dict(zip(STEPS, (0, 5e-4, PEAK, half, middle, end, end), strict=True))


def _tail(first, second, third, end):
    values = (0, 5e-4, PEAK, PEAK, PEAK, first, second, third, end, end)
    return dict(zip(TAIL_STEPS, values, strict=True))


WHOLE_RUN = {
    "cosine to a floor": (
        schedules.cosine(PEAK, **RUN, end_value=FLOOR),
        _rise(6.281417e-4, 5.5e-4, FLOOR),
    ),
    "linear": (schedules.linear(PEAK, **RUN), _rise(5.555556e-4, 5e-4, 0)),
    "linear to a floor": (
        schedules.linear(PEAK, **RUN, end_value=FLOOR),
        _rise(6e-4, 5.5e-4, FLOOR),
    ),
    "polynomial 1.5": (
        schedules.polynomial(PEAK, **RUN, power=1.5),
        _rise(4.140867e-4, 3.535534e-4, 0),
    ),
    "rex": (schedules.rex(PEAK, **RUN), _rise(7.142857e-4, 6.666667e-4, 0)),
    "rex with k of a tenth": (
        schedules.rex(PEAK, **RUN, k=0.1),
        _rise(9.259259e-4, 9.090909e-4, 0),
    ),
    "cosine power 2": (
        schedules.cosine_power(PEAK, **RUN, b=2.0, end_value=FLOOR),
        _rise(5.517431e-4, 4.727922e-4, FLOOR),
    ),
    "cosine power 10": (
        schedules.cosine_power(PEAK, **RUN, end_value=FLOOR),
        _rise(3.862105e-4, 3.162278e-4, FLOOR),
    ),
    "uba 0.25": (
        schedules.uba(PEAK, **RUN, phi=0.25),
        _rise(9.191083e-4, 8.888889e-4, 0),
    ),
    "uba 0.5": (schedules.uba(PEAK, **RUN, phi=0.5), _rise(8.503242e-4, 8e-4, 0)),
    "uba 1": (schedules.uba(PEAK, **RUN), _rise(7.396208e-4, 6.666667e-4, 0)),
    "uba 2": (schedules.uba(PEAK, **RUN, phi=2), _rise(5.868241e-4, 5e-4, 0)),
    "uba 5": (schedules.uba(PEAK, **RUN, phi=5), _rise(3.622899e-4, 2.857143e-4, 0)),
}

LAST_STEPS = {
    "wsd linear": (tail(shapes.linear), _tail(7.5e-4, 5e-4, 2.5e-4, 0)),
    "wsd linear to a floor": (
        tail(shapes.linear, FLOOR),
        _tail(7.75e-4, 5.5e-4, 3.25e-4, FLOOR),
    ),
    "wsd cosine to a floor": (
        tail(shapes.cosine, FLOOR),
        _tail(8.681981e-4, 5.5e-4, 2.318019e-4, FLOOR),
    ),
    "wsd 1-sqrt": (
        tail(shapes.one_minus_sqrt),
        _tail(5e-4, 2.928932e-4, 1.339746e-4, 0),
    ),
    "wsd 1-sqrt to a floor": (
        tail(shapes.one_minus_sqrt, FLOOR),
        _tail(5.5e-4, 3.636039e-4, 2.205771e-4, FLOOR),
    ),
    # P (F / P)^q
    "wsd exponential": (
        tail(shapes.geometric, FLOOR),
        _tail(5.623413e-4, 3.162278e-4, 1.778279e-4, FLOOR),
    ),
    # 1 / (q / F + (1 - q) / P)
    "wsd inverse": (
        tail(shapes.harmonic, FLOOR),
        _tail(3.076923e-4, 1.818182e-4, 1.290323e-4, FLOOR),
    ),
    # 2 x 0.5^q - 1: the exponential map of order 2
    "wsd of Megatron": (
        tail(shapes.exponential(2.0), FLOOR),
        _tail(7.136135e-4, 4.727922e-4, 2.702864e-4, FLOOR),
    ),
    # P 0.5^((t - 800) / 50)
    "wsd half-life": (
        tail(shapes.half_life(50 / 200)),
        _tail(5e-4, 2.5e-4, 1.25e-4, 6.25e-5),
    ),
}


def infinite(cooldown):
    return schedules.infinite(
        PEAK,
        stable_value=5e-4,
        end_value=1e-5,
        warmup_steps=100,
        cooldown_steps=300,
        annealing_steps=200,
        annealing_start=800,
        cooldown=cooldown,
    )


def _infinite(middle):
    values = {0: 0, 50: 5e-4, 100: PEAK, 250: middle, 400: 5e-4, 500: 5e-4}
    return values | {800: 5e-4, 900: 7.071068e-5, 1000: 1e-5, 1100: 1e-5}


OTHERS = {
    "infinite cosine": (infinite(shapes.cosine), _infinite(7.5e-4)),
    "infinite inverse square root": (
        infinite(shapes.inverse_sqrt(10.0)),
        _infinite(5.764056e-4),
    ),
    "re-warmed cosine": (
        schedules.cycles(
            PEAK, cycle_steps=(500, 500), warmup_steps=(100, 50), end_value=FLOOR
        ),
        {
            **{0: 0, 100: PEAK, 300: 5.5e-4, 499: 1.000139e-4, 500: FLOOR},
            **{525: 5.5e-4, 550: PEAK, 775: 5.5e-4, 999: 1.000110e-4},
            **{1000: FLOOR, 1100: FLOOR},
        },
    ),
    "steps at 30, 60 and 90 per cent": (
        schedules.thirty_sixty_ninety(PEAK, total_steps=1000),
        {
            **{0: PEAK, 299: PEAK, 300: 1e-4, 599: 1e-4, 600: 1e-5, 899: 1e-5},
            **{900: 1e-6, 1000: 1e-6, 1100: 1e-6},
        },
    ),
    "one cycle": (
        schedules.one_cycle(PEAK, total_steps=1000),
        {0: 4e-5, 150: 5.2e-4, 300: PEAK, 650: 5.00002e-4, 1000: 4e-9, 1100: 4e-9},
    ),
    "power scheduler": (
        schedules.power(0.02, tokens_per_step=128 * 4096, batch_size=128),
        {0: 0.02, 1000: 0.02, 10_000: 6.501104e-3, 50_000: 2.860964e-3}
        | {100_000: 2.009033e-3},
    ),
}

TABLE = {**WHOLE_RUN, **LAST_STEPS, **OTHERS}
