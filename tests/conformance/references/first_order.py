"""First-order methods, in float64 NumPy."""

import jax
import numpy as np

from tests.conformance.references.walking import each_leaf, inner_product


def sgd(h):
    def step(p, g, t, memory):
        m = g + h["momentum"] * (0.0 if memory is None else memory)
        return p - h["learning_rate"] * m, m

    return each_leaf(step)


def adamw(h, nesterov=False):
    b1, b2 = h["b1"], h["b2"]

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean = m / (1 - b1**t)
        if nesterov:
            mean = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        u = mean / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, v)

    return each_leaf(step)


def nadamw(h):
    return adamw(h, nesterov=True)


def adamomentum(h):
    b1, b2 = h["b1"], h["b2"]

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * m * m + h["eps"]
        u = m / (1 - b1**t) / np.sqrt(v / (1 - b2**t))
        return p - h["learning_rate"] * u, (m, v)

    return each_leaf(step)


def lion(h):
    def step(p, g, t, memory):
        m = np.zeros_like(g) if memory is None else memory
        u = np.sign(h["b1"] * m + (1 - h["b1"]) * g)
        m = h["b2"] * m + (1 - h["b2"]) * g
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), m

    return each_leaf(step)


def hypergradient(h):
    """Additive, around Adam: one rate for the whole tree."""

    def reference(params, grads):
        adam = adamw(
            {"learning_rate": 1.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
            | {"weight_decay": 0.0}
        )
        zeros = jax.tree.map(np.zeros_like, params)
        ends = [zeros, *adam(zeros, grads)]
        rate, last, points = h["learning_rate"], zeros, []
        for g, begin, end in zip(grads, ends, ends[1:], strict=False):
            u = jax.tree.map(np.subtract, begin, end)
            rate = max(0.0, rate + h["hyper_learning_rate"] * inner_product(g, last))
            params = jax.tree.map(lambda p, u, a=rate: p - a * u, params, u)
            last = u
            points.append(params)
        return points

    return reference


def cautious(h):
    """Around Adam with the rate 0.01."""

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        agrees = u * g > 0
        share = max(agrees.mean() if g.size else 1.0, h["min_share"])
        return p - 0.01 * u * agrees / share, (m, v)

    return each_leaf(step)


def state_precision(h):
    """Around Adam with the rate 0.01, nearest levels, rows shorter than a block."""
    squares, signed = (np.arange(1, 256) / 255) ** 4, (np.arange(128) / 127) ** 2

    def nearest(size, levels):
        return levels[np.argmin(np.abs(size[..., None] - levels), -1)]

    def rounded(x):
        if x.size < h["min_size"]:
            return x
        s = np.abs(x).max(-1, keepdims=True)
        size = np.abs(x) / s
        both = (x < 0).any(-1, keepdims=True)
        levels = np.where(both, nearest(size, signed), nearest(size, squares))
        return np.sign(x) * s * levels

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return p - 0.01 * u, (rounded(m), rounded(v))

    return each_leaf(step)


def stochastic_rounding(h):
    """Around Adam with the rate 0.01: parameters of float32 are not rounded."""
    adam = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    return adamw({**adam, "weight_decay": 0.0})


def sharpness_aware(h):
    """Around Adam; the suite's losses are linear: their gradient is one everywhere."""
    adam = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    return adamw({**adam, "weight_decay": 0.0})


def fedhyper(h):
    """Normalised, without momentum: one factor for the whole tree."""

    def reference(params, grads):
        correction, last, points = 0.0, None, []
        for g in grads:
            if last is not None:
                norms = (inner_product(g, g) * inner_product(last, last)) ** 0.5
                correction += inner_product(g, last) / norms
            correction = min(max(correction, h["bounds"][0]), h["bounds"][1])
            step = h["learning_rate"] * (1 + correction)
            params = jax.tree.map(lambda p, g, a=step: p - a * g, params, g)
            last = g
            points.append(params)
        return points

    return reference


REFERENCES = {
    "adamomentum": adamomentum,
    "adamw": adamw,
    "cautious": cautious,
    "fedhyper": fedhyper,
    "hypergradient": hypergradient,
    "lion": lion,
    "nadamw": nadamw,
    "sgd": sgd,
    "sharpness_aware": sharpness_aware,
    "state_precision": state_precision,
    "stochastic_rounding": stochastic_rounding,
}
