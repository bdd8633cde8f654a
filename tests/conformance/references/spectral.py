"""Muon and its relatives, in float64 NumPy."""

import numpy as np

from tests.conformance.references import first_order
from tests.conformance.references.walking import each_matrix

JORDAN = (3.4445, -4.7750, 2.0315)


def vectors():
    """What the rows of matrix methods do with the other leaves: AdamW at 3e-4."""
    return first_order.adamw(
        {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
        | {"weight_decay": 1e-4}
    )


def polar(x):
    """Five steps of Newton-Schulz."""
    x = x / max(np.linalg.norm(x), 1e-300)
    a, b, c = JORDAN
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon(h):
    def step(p, g, t, memory):
        m = h["b1"] * (0.0 if memory is None else memory) + (1 - h["b1"]) * g
        scale = max(1.0, p.shape[1] / p.shape[0]) ** 0.5
        u = scale * polar(h["b1"] * m + (1 - h["b1"]) * g)
        return p - h["learning_rate"] * u, m

    return each_matrix(step, vectors())


def normuon(h):
    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m = h["b1"] * m + (1 - h["b1"]) * g
        o = polar(h["b1"] * m + (1 - h["b1"]) * g)
        v = h["b2"] * v + (1 - h["b2"]) * np.mean(o * o, axis=0)
        u = o / (np.sqrt(v) + h["eps"])
        u *= np.linalg.norm(o) / (np.linalg.norm(u) + h["eps"])
        u *= max(1.0, p.shape[1] / p.shape[0]) ** 0.5
        return p - h["learning_rate"] * u, (m, v)

    return each_matrix(step, vectors())


REFERENCES = {"muon": muon, "normuon": normuon}
