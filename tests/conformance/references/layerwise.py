"""Methods with one number for each layer, in float64 NumPy, from their papers."""

import numpy as np

from tests.conformance.references.first_order import adamw
from tests.conformance.references.walking import each_leaf, each_matrix

LAYERS = ("kernel", "embedding")


def lamb(h):
    """Algorithm 2; the ratio is for matrices only."""

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = h["b1"] * m + (1 - h["b1"]) * g, h["b2"] * v + (1 - h["b2"]) * g * g
        root = np.sqrt(v / (1 - h["b2"] ** t)) + h["eps"]
        u = m / (1 - h["b1"] ** t) / root + h["weight_decay"] * p
        ratio = np.linalg.norm(p) / np.linalg.norm(u)
        return p - h["learning_rate"] * ratio * u, (m, v)

    return each_matrix(step, adamw(h), names=LAYERS)


def lars(h):
    """Equation 6; a leaf that is no matrix is vectors on its last axis."""
    eta, d = h["learning_rate"], h["weight_decay"]

    def step(p, g, t, memory, axis=None):
        if not p.size:
            return p, memory
        w, gradient = (np.linalg.norm(np.atleast_1d(x), None, axis) for x in (p, g))
        ratio = h["trust_coefficient"] * w / (gradient + d * w)
        u = (ratio if axis is None else ratio[..., None]) * (g + d * p)
        u = u.reshape(p.shape)
        m = h["momentum"] * (0.0 if memory is None else memory) + u
        return p - eta * (u + h["momentum"] * m if h["nesterov"] else m), m

    rest = each_leaf(lambda *state: step(*state, axis=-1))
    return each_matrix(step, rest, names=LAYERS)


REFERENCES = {
    "lamb": lamb,
    "lars": lars,
}
