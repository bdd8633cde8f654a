"""Adaptive first-order methods, in float64 NumPy."""

import numpy as np

from tests.conformance.references.tuning_free import one_vector
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


def adabelief(h):
    """The authors' code, rectified and with decoupled decay."""
    b1, b2, eta = h["b1"], h["b2"], h["learning_rate"]

    def step(p, g, t, memory):
        m, s = (0.0, 0.0) if memory is None else memory
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + h["eps"]
        most, u = 2 / (1 - b2) - 1, m / (1 - b1**t)
        r = most - 2 * t * b2**t / (1 - b2**t)
        if r >= 5:
            square = (r - 4) * (r - 2) * most / ((most - 4) * (most - 2) * r)
            u = u * np.sqrt(square * (1 - b2**t)) / (np.sqrt(s) + h["eps"])
        return p * (1 - eta * h["weight_decay"]) - eta * u, (m, s)

    return each_leaf(step)


def diffgrad(h):
    """The authors' second release, with coupled decay."""
    b1, b2 = h["b1"], h["b2"]

    def step(p, g, t, memory):
        g = g + h["weight_decay"] * p
        m, v, last = (0.0, 0.0, 0.0) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        friction = 1 / (1 + np.exp(-np.abs(last - g)))
        u = np.sqrt(1 - b2**t) / (1 - b1**t) * friction * m / (np.sqrt(v) + h["eps"])
        return p - h["learning_rate"] * u, (m, v, g)

    return each_leaf(step)


def sgd_sai(h):
    """The authors' code, with a ratio of sqrt(d) where there is no deviation."""
    b1, eta = h["b1"], h["learning_rate"]

    def step(p, g, t, memory):
        if not p.size:
            return p, None
        if memory is None:
            spread = np.std(g, ddof=1) if g.size > 1 else 0.0
            ratio = np.linalg.norm(g) / (spread + h["eps"]) if spread else g.size**0.5
            memory = ratio, g
        else:
            memory = memory[0], b1 * memory[1] + (1 - b1) * g
        return p * (1 - eta * h["weight_decay"]) - eta * memory[0] * memory[1], memory

    return each_leaf(step)


def adagrad_norm(h):
    """One sum of squares for the whole tree."""
    eta, decay = h["learning_rate"], h["weight_decay"]

    def step(x, g, memory):
        square = (h["initial_norm"] ** 2 if memory is None else memory) + g @ g
        u = g / (np.sqrt(square) + h["eps"])
        return x - eta * (u + decay * x), square

    return one_vector(step)


REFERENCES = {
    "adabelief": adabelief,
    "adagrad_norm": adagrad_norm,
    "adan": adan,
    "diffgrad": diffgrad,
    "sgd_sai": sgd_sai,
}
