"""Muon and its relatives, in float64 NumPy."""

import jax
import numpy as np

from tests.conformance.references import first_order
from tests.conformance.references.walking import each_leaf, each_matrix

JORDAN = (3.4445, -4.7750, 2.0315)
YOUJIACHENG = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
TURBO = (
    (4.6051, -9.6552, 5.6769),
    (4.7505, -6.0861, 2.1790),
    (2.7763, -2.3190, 0.5523),
    (2.4231, -2.2861, 0.8193),
)


def vectors():
    """What the rows of matrix methods do with the other leaves: AdamW at 3e-4."""
    return first_order.adamw(
        {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
        | {"weight_decay": 1e-4}
    )


def iterate(x, rows):
    for a, b, c in rows:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def polar(x, rows=(JORDAN,) * 5):
    """Five steps of Newton-Schulz."""
    return iterate(x / max(np.linalg.norm(x), 1e-300), rows)


def muon(h, polar=polar):
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


def turbo_muon(h):
    def four_steps(x):
        if x.shape[0] > x.shape[1]:
            return four_steps(x.T).T
        rows = np.abs(x @ x.T).sum(axis=1, keepdims=True)
        return iterate(x / np.sqrt(rows), TURBO)

    return muon(h, four_steps)


def scion(h):
    b1, rate, radius = h["b1"], h["learning_rate"], h["radius"]

    def spectral(p, g, t, memory):
        m = b1 * (0.0 if memory is None else memory) + (1 - b1) * g
        u = radius["spectral"] * (p.shape[1] / p.shape[0]) ** 0.5 * polar(m)
        return (1 - rate) * p - rate * u, m

    def vectors(p, g, t, memory):
        m = b1 * (0.0 if memory is None else memory) + (1 - b1) * g
        u = m / np.sqrt(np.mean(m * m, axis=-1 if m.ndim else None, keepdims=True))
        return (1 - rate) * p - rate * radius["rms"] * u, m

    return each_matrix(spectral, each_leaf(vectors))


def lanton(h):
    b1, b2, quietest = h["b1"], h["b2"], {}

    def listen(p, g, t, memory):
        last, noise = (g, 0.0) if memory is None else memory
        size = np.sum((g - last) * polar(g - last, YOUJIACHENG))
        noise = b2 * noise + (1 - b2) * size**2
        quietest[t] = min(quietest.get(t, np.inf), noise)
        return noise, (g, noise)

    def step(p, g, t, memory):
        m, heard = (0.0, None) if memory is None else memory
        m = b1 * m + (1 - b1) * g
        noise, heard = listen(p, g, t, heard)
        ratio = ((h["alpha"] ** 2 + quietest[t]) / (h["alpha"] ** 2 + noise)) ** 0.25
        u = ratio * 0.2 * max(p.shape) ** 0.5 * polar(m)
        return p - h["learning_rate"] * u, (m, heard)

    def reference(params, grads):
        # A first walk hears every layer before the second one compares them.
        each_matrix(lambda p, *rest: (p, listen(p, *rest)[1]), vectors())(params, grads)
        return each_matrix(step, vectors())(params, grads)

    return reference


def dion(h):
    def step(p, g, t, memory):
        rank, scale = min(h["rank"], *p.shape), (p.shape[1] / p.shape[0]) ** 0.5
        if memory is None:
            start = jax.random.normal(jax.random.key(0), (p.shape[0], rank))
            memory = 0.0, np.asarray(start, float)
        x, q = memory[0] + g, memory[1]
        left = np.linalg.qr(x.T @ q)[0]
        right = x @ left
        x = x - (1 - h["b1"]) * right @ left.T
        q = right / (np.linalg.norm(right, axis=0) + h["eps"])
        u = scale * q @ left.T + h["weight_decay"] * p
        return p - h["learning_rate"] * u, (x, q)

    return each_matrix(step, vectors())


def dion2(h):
    def rows(x):
        sizes = np.abs(x).sum(axis=1)
        chosen = np.argsort(-sizes)[: int(np.ceil(h["fraction"] * len(sizes)))]
        o, left = np.zeros_like(x), x.copy()
        o[chosen] = polar(x[chosen])
        left[chosen] *= h["b1"]
        return o, left

    def step(p, g, t, memory):
        x = g + (0.0 if memory is None else memory)
        o, x = rows(x) if x.shape[0] < x.shape[1] else (y.T for y in rows(x.T))
        u = (p.shape[1] / p.shape[0]) ** 0.5 * o + h["weight_decay"] * p
        return p - h["learning_rate"] * u, x

    return each_matrix(step, vectors())


def muon_bp(h):
    def step(p, g, t, memory):
        m = h["b1"] * (0.0 if memory is None else memory) + g
        cuts = h["blocks"] if (t - 1) % h["every"] else (1, 1)
        parts = [
            np.split(row, np.gcd(cuts[1], p.shape[1]), axis=1)
            for row in np.split(m, np.gcd(cuts[0], p.shape[0]), axis=0)
        ]
        u = [[0.2 * max(x.shape) ** 0.5 * polar(x) for x in row] for row in parts]
        return p - h["learning_rate"] * np.block(u), m

    return each_matrix(step, vectors())


REFERENCES = {
    "dion": dion,
    "dion2": dion2,
    "lanton": lanton,
    "muon": muon,
    "muon_bp": muon_bp,
    "normuon": normuon,
    "scion": scion,
    "turbo_muon": turbo_muon,
}
