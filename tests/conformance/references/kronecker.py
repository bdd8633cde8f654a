"""Kronecker-factored methods, in float64 NumPy."""

import jax
import numpy as np

from tests.conformance.references.spectral import vectors
from tests.conformance.references.walking import each_matrix


def eigenbasis(x):
    """Eigenvectors, largest first, then unit vectors of the least covered rows."""
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


def shampoo(h):
    """With roots from the first `every` steps on, and Adam's norms."""
    b1, b2, eta = h["b1"], h["b2"], h["learning_rate"]

    def root(x, t):
        values, q = np.linalg.eigh(x / (1 - b2**t))
        values = np.maximum(values, 1e-7 * len(x) * values[-1]) + h["eps"]
        return (q * values**-0.25) @ q.T

    def step(p, g, t, memory):
        m, v, left, right, roots = memory or (0.0, 0.0, 0.0, 0.0, None)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        mean = m / (1 - b1**t)
        u = mean / (np.sqrt(v / (1 - b2**t)) + h["graft_eps"])
        if t % h["every"] == 0:
            roots = root(left, t), root(right, t)
        if roots:
            turned = roots[0] @ mean @ roots[1]
            u = turned * np.linalg.norm(u) / np.linalg.norm(turned)
        return p - eta * u, (m, v, left, right, roots)

    return each_matrix(step, vectors())


def psgd_kron(h):
    """A refresh a step; the noise is drawn by JAX, as the optimizer does."""

    def drawn(shape, t):
        key = jax.random.fold_in(jax.random.key(0), 0)
        for number in (t - 1, *shape, 0):
            key = jax.random.fold_in(key, number)
        return np.asarray(jax.random.normal(key, (1, *shape), np.float32)[0], float)

    def moved(q, s, t):
        both = s + t
        once = both @ both[np.argmax(np.linalg.norm(both, axis=1))]
        norm = np.linalg.norm(both @ once) / np.linalg.norm(once)
        return q - h["size"] * np.triu(s - t) @ q / norm

    def step(p, g, t, memory):
        m, left, right = memory or (0.0, np.eye(len(g)), np.eye(len(g.T)))
        m, v = h["b1"] * m + (1 - h["b1"]) * g, drawn(g.shape, t)
        mean = m / (1 - h["b1"] ** t)
        damping = h["damping"] + h["relative_damping"] * np.abs(mean).mean()
        a = left @ (mean + damping * v) @ right.T
        b = np.linalg.inv(left).T @ v @ np.linalg.inv(right)
        left, right = moved(left, a @ a.T, b @ b.T), moved(right, a.T @ a, b.T @ b)
        u = left.T @ left @ mean @ right.T @ right
        u = u * min(1, h["clip_rms"] / (np.sqrt(np.mean(u**2)) + h["eps"]))
        return p - h["learning_rate"] * u, (m, left, right)

    return each_matrix(step, vectors())


REFERENCES = {"psgd_kron": psgd_kron, "shampoo": shampoo, "soap": soap}
