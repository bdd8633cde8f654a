"""Methods that measure curvature, in float64 NumPy."""

import jax
import numpy as np


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


REFERENCES = {"mfac": mfac}
