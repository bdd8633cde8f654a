"""Momentum with three constants, and optimistic and normalised steps, in NumPy."""

import numpy as np

from tests.conformance.references import walking


def triple_momentum(h):
    """In the units of the parameters: v = -alpha m."""

    def step(y, g, t, v):
        v = np.zeros_like(g) if v is None else v
        new = h["beta"] * v - h["learning_rate"] * g
        return y + (1 + h["gamma"]) * new - h["gamma"] * v, new

    return walking.each_leaf(step)


def optimistic_mirror_descent(h):
    """Euclidean and without bounds, with the secondary iterate as the memory."""

    def step(x, g, t, secondary):
        secondary = x if secondary is None else secondary
        secondary = secondary - h["learning_rate"] * g
        return secondary - h["learning_rate"] * g, secondary

    return walking.each_leaf(step)


def normalized_logistic(h):
    """The suite says that the mean weight is one half."""
    return walking.each_leaf(lambda p, g, t, _: (p - h["learning_rate"] * g / 0.5, _))


REFERENCES = {
    "normalized_logistic": normalized_logistic,
    "optimistic_mirror_descent": optimistic_mirror_descent,
    "triple_momentum": triple_momentum,
}
