"""Methods that leave the length of scale-invariant weights alone, in float64 NumPy."""

import numpy as np

from tests.conformance.references import walking


def project(w, g, q, delta, eps, wd_ratio):
    """Projects matrices whose columns are the channels: q and the factor on decay."""
    for rows in ((0,), (0, 1)):
        length = np.sqrt((w * w).sum(rows, keepdims=True))
        norms = np.sqrt((g * g).sum(rows, keepdims=True)) * length
        cosine = np.abs((w * g).sum(rows, keepdims=True)) / np.where(norms, norms, 1)
        if cosine.max() < delta / np.sqrt(w.size / cosine.size):
            n = w / (length + eps)
            return q - n * (n * q).sum(rows, keepdims=True), wd_ratio
    return q, 1.0


def _matrices_projected(direction, h, decay):
    """Walks with `direction`, and projects the leaves that are matrices."""

    def step(p, g, t, memory, matrix=True):
        q, memory = direction(g, t, memory)
        r = 1.0
        if matrix:
            q, r = project(p, g, q, h["delta"], h["eps"], h["wd_ratio"])
        return p - h["learning_rate"] * (q + r * decay * p), memory

    rest = walking.each_leaf(lambda *args: step(*args, matrix=False))
    return walking.each_matrix(step, rest)


def adamp(h):
    b1, b2 = h["b1"], h["b2"]

    def direction(g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean = b1 * m + (1 - b1) * g if h["nesterov"] else m
        q = mean / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        return q, (m, v)

    return _matrices_projected(direction, h, h["weight_decay"])


def sgdp(h):
    def direction(g, t, m):
        m = (1 - h["dampening"]) * g + h["momentum"] * (0.0 if m is None else m)
        return (g + h["momentum"] * m if h["nesterov"] else m), m

    return _matrices_projected(direction, h, h["weight_decay"] / (1 - h["momentum"]))


def project_scale_invariant(h):
    """Around Adam with the rate 0.01."""
    adam = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.999, "nesterov": False}
    return adamp({**h, **adam})


REFERENCES = {
    "adamp": adamp,
    "project_scale_invariant": project_scale_invariant,
    "sgdp": sgdp,
}
