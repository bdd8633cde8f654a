"""Adaptive first-order methods, in float64 NumPy."""

import numpy as np

from tests.conformance.references.walking import each_leaf


def adan(h):
    """The authors' code, with proximal decay."""
    b1, b2, b3 = h["b1"], h["b2"], h["b3"]
    eta, decay = h["learning_rate"], h["weight_decay"]

    def step(p, g, t, memory):
        m, v, n, last = (0.0, 0.0, 0.0, g) if memory is None else memory
        d = g - last
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        root = np.sqrt(n / (1 - b3**t)) + h["eps"]
        u = (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / root
        return (p - eta * u) / (1 + eta * decay), (m, v, n, g)

    return each_leaf(step)


REFERENCES = {
    "adan": adan,
}
