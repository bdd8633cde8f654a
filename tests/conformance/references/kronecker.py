"""Kronecker-factored methods, in float64 NumPy."""

import numpy as np

from tests.conformance.references.spectral import vectors
from tests.conformance.references.walking import each_matrix


def eigenbasis(x):
    """Eigenvectors, largest first; unit vectors of the least covered rows after them."""
    values, q = (z[..., ::-1] for z in np.linalg.eigh(x))
    q = q * (values > 1e-10 * values[0])
    order = np.argsort(-np.sum(q * q, axis=1), kind="stable")
    q = np.where(np.any(q, axis=0), q, np.eye(len(x))[:, order])
    return np.linalg.qr(q)[0]


def soap(h):
    b1, b2, eta = h["b1"], h["b2"], h["learning_rate"]

    def step(p, g, t, memory):
        if memory is None:
            left, right = ((1 - b2) * x for x in (g @ g.T, g.T @ g))
            return p, (0.0, 0.0, left, right, eigenbasis(left), eigenbasis(right))
        m, v, left, right, q_left, q_right = memory
        t = t - 1  # the first step only found the bases
        turned = q_left.T @ g @ q_right
        m, v = b1 * m + (1 - b1) * turned, b2 * v + (1 - b2) * turned**2
        u = q_left @ (m / (np.sqrt(v) + h["eps"])) @ q_right.T
        p = p - eta * np.sqrt(1 - b2**t) / (1 - b1**t) * u
        p = p - eta * h["weight_decay"] * p
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        return p, (m, v, left, right, q_left, q_right)

    return each_matrix(step, vectors())


REFERENCES = {"soap": soap}
