"""Methods that measure curvature, in float64 NumPy."""

import jax
import numpy as np

from tests.conformance.references.walking import each_leaf


def mfac(h):
    """The Fisher matrix in full, and a dense solve."""

    def flat(tree):
        return np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])

    def reference(params, grads):
        window, points = [], []
        for g in grads:
            window = [*window, flat(g)][-h["window"] :]
            fisher = h["damping"] * np.eye(window[0].size)
            fisher += sum(np.outer(x, x) for x in window) / h["window"]
            step = iter(np.linalg.solve(fisher, window[-1]))
            params = jax.tree.map(
                lambda p, u=step: (
                    p
                    - h["learning_rate"]
                    * np.reshape([next(u) for _ in range(p.size)], p.shape)
                ),
                params,
            )
            points.append(params)
        return points

    return reference


def adahessian(h):
    """The suite's curvature is 1 everywhere, so every block has it too."""

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m = h["b1"] * m + (1 - h["b1"]) * g
        v = h["b2"] * v + (1 - h["b2"]) * 1.0**2
        curvature = np.sqrt(v / (1 - h["b2"] ** t)) ** h["hessian_power"]
        u = m / (1 - h["b1"] ** t) / (curvature + h["eps"])
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, v)

    return each_leaf(step)


def sophia(h):
    def step(p, g, t, memory):
        m, curvature = (0.0, 0.0) if memory is None else memory
        m = h["b1"] * m + (1 - h["b1"]) * g
        mean = m / (1 - h["b1"] ** t)
        u = mean / max(h["gamma"] * curvature, h["eps"])
        u = np.clip(u, -h["clip"], h["clip"])
        if (t - 1) % h["every"] == 0:  # after the step that did not use it
            curvature = h["b2"] * curvature + (1 - h["b2"]) * 1.0
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, curvature)

    return each_leaf(step)


REFERENCES = {"adahessian": adahessian, "mfac": mfac, "sophia": sophia}
