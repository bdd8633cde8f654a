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
    """With decay in the rate; leaves without a view are vectors on their last axis."""
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


def adafactor(h):
    """Algorithms 4 and 5, with sums over rows and columns as they stand there."""

    def rms(x):
        return np.sqrt(np.mean(x * x, -1 if x.ndim == 1 else None))

    def step(p, g, t, memory):
        squares, keep = g * g + h["eps"], 1 - t ** -h["decay_power"]
        sums = (squares.sum(1), squares.sum(0)) if p.ndim == 2 else (squares,)
        old, mean = ([0.0] * len(sums), 0.0) if memory is None else memory
        sums = [keep * s + (1 - keep) * new for s, new in zip(old, sums, strict=True)]
        v = np.outer(*sums) / sums[0].sum() if p.ndim == 2 else sums[0]
        u = g / np.sqrt(v)
        if h["max_rms"] is not None:
            u = u / max(1.0, rms(u) / h["max_rms"])
        u = u * (1 if h["min_scale"] is None else max(h["min_scale"], rms(p)))
        mean = u if h["b1"] is None else h["b1"] * mean + (1 - h["b1"]) * u
        w = p - h["learning_rate"] * (mean + h["weight_decay"] * p)
        return w, (sums, mean)

    def vectors(p, g, t, memory):
        """One step for each vector of a leaf."""
        rows = [x.reshape(-1, x.shape[-1] if x.ndim else 1) for x in (p, g)]
        memory = [None] * len(rows[0]) if memory is None else memory
        done = [step(x, y, t, m) for x, y, m in zip(*rows, memory, strict=True)]
        return np.reshape([w for w, _ in done], p.shape), [m for _, m in done]

    return each_matrix(step, each_leaf(vectors), names=LAYERS)


def novograd(h):
    """Algorithm 1; leaves without a view are vectors on their last axis."""
    b2 = h["b2"]

    def step(p, g, t, memory, axis=None):
        if not p.size:
            return p, memory
        square = np.sum(np.square(np.atleast_1d(g)), axis)
        v, m = (square, 0.0) if memory is None else memory
        v = b2 * v + (1 - b2) * square
        root = (np.sqrt(v) if axis is None else np.sqrt(v)[..., None]) + h["eps"]
        m = h["b1"] * m + (g / root).reshape(p.shape) + h["weight_decay"] * p
        return p - h["learning_rate"] * m, (v, m)

    rest = each_leaf(lambda *state: step(*state, axis=-1))
    return each_matrix(step, rest, names=LAYERS)


REFERENCES = {
    "adafactor": adafactor,
    "lamb": lamb,
    "lars": lars,
    "novograd": novograd,
}
