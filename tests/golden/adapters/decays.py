"""Decays that more than one library has, and what is said about a comparison.

The json of a schedule holds only what was passed; the defaults in the adapters are
those of the reference's signature.
"""

from optlab.schedules import shapes
from tests.golden.settings import NotInOptlabError, Settings

RISES_AGAIN = "up to the last step; then the reference rises again, optlab holds"
OWN_SHAPE = "optlab's phases; the adapter supplies the shape"

WSD_SHAPES = {
    "linear": shapes.linear,
    "cosine": shapes.cosine,
    "1-sqrt": shapes.one_minus_sqrt,
}


def only_half_a_wave(values: Settings, shape: str = "cosine") -> None:
    if shape != "cosine":
        values.idle("num_cycles", because="only a cosine has cycles")
    elif (cycles := values.take("num_cycles", 0.5)) != 0.5:
        raise NotInOptlabError(f"a cosine of {cycles} cycles")


def whole(steps: float, what: str) -> int:
    """Returns a length as an integer, if it is one."""
    if abs(steps - round(steps)) > 1e-9:
        raise NotInOptlabError(f"{what} of {steps} steps")
    return round(steps)


def cover(length: int, factor: float, steps: int, limit: float) -> list[int]:
    """Returns the lengths of cycles, each `factor` times the last, up to `steps`."""
    lengths = [length]
    while sum(lengths) < steps and len(lengths) < limit:
        lengths.append(whole(lengths[-1] * factor, "a cycle"))
    return lengths
