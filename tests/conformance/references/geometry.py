"""Methods that move along curves, in float64 NumPy."""

import numpy as np

from tests.conformance.references import spectral, walking


def exponentiated_gradient(h):
    def step(p, g, t, m):
        d = g + h["weight_decay"] * np.sign(p)
        m = d if m is None else h["momentum"] * m + (1 - h["dampening"]) * d
        return p * np.exp(-h["learning_rate"] * np.sign(p) * m), m

    return walking.each_leaf(step)


def exponentiated_adamw(h):
    b1, b2, eta = h["b1"], h["b2"], h["learning_rate"]

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        p = p * (1 - eta * h["weight_decay"])
        return p * np.exp(-eta * np.sign(p) * u), (m, v)

    return walking.each_leaf(step)


def riemannian_sgd(h):
    """On Grassmann along geodesics; the longer side of a matrix is its rows."""

    def step(p, g, t, m):
        if p.shape[0] < p.shape[1]:
            p, m = step(p.T, g.T, t, m)
            return p.T, m
        m = g if m is None else h["momentum"] * m + (1 - h["dampening"]) * g
        if (t - 1) % h["every"] == 0:
            q, r = np.linalg.qr(p)
            p = q * np.sign(np.diag(r))
        u, s, v = np.linalg.svd(
            -h["learning_rate"] * (m - p @ (p.T @ m)), full_matrices=False
        )
        return ((p @ v.T) * np.cos(s) + u * np.sin(s)) @ v, m

    return walking.each_matrix(step, spectral.vectors())


REFERENCES = {
    "exponentiated_adamw": exponentiated_adamw,
    "exponentiated_gradient": exponentiated_gradient,
    "riemannian_sgd": riemannian_sgd,
}
