"""First-order methods that Optax has too, in float64 NumPy, from their papers."""

import numpy as np

from tests.conformance.references.walking import each_leaf


def yogi(h):
    """Algorithm 2, with the corrections of bias and the eps of TensorFlow Addons."""
    b1, b2, eta = h["b1"], h["b2"], h["learning_rate"]

    def step(p, g, t, memory):
        m, v = (0.0, h["initial_square"]) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, v - (1 - b2) * np.sign(v - g * g) * g * g
        rate = eta * np.sqrt(1 - b2**t) / (1 - b1**t)
        w = p - rate * m / (np.sqrt(v) + h["eps"])
        return w - eta * h["weight_decay"] * p, (m, v)

    return each_leaf(step)


def ademamix(h):
    """The authors' code for PyTorch."""
    b1, b2, alpha, b3 = h["b1"], h["b2"], h["alpha"], h["b3"]

    def half_life(b):
        return np.log(0.5) / np.log(b) - 1

    def step(p, g, t, memory):
        fast, slow, square = (0.0, 0.0, 0.0) if memory is None else memory
        a = min(t / (h["alpha_warmup_steps"] or 1), 1)
        b = min(t / (h["b3_warmup_steps"] or 1), 1)
        b = 0.5 ** (1 / ((1 - b) * half_life(b1) + b * half_life(b3) + 1))
        fast, slow = b1 * fast + (1 - b1) * g, b * slow + (1 - b) * g
        square = b2 * square + (1 - b2) * g * g
        root = np.sqrt(square / (1 - b2**t)) + h["eps"]
        u = (fast / (1 - b1**t) + a * alpha * slow) / root
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (
            fast,
            slow,
            square,
        )

    return each_leaf(step)


def adopt(h):
    """With clipping; the first gradient is that of t = 0."""
    b1, b2, eta = h["b1"], h["b2"], h["learning_rate"]

    def step(p, g, t, memory):
        t = t - 1
        m, v = (0.0 * g, g * g) if memory is None else memory
        if t:
            c = g / np.maximum(np.sqrt(v), h["eps"])
            c = np.clip(c, -(t**0.25), t**0.25) if h["clip"] else c
            m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * g * g
        return p - eta * (m + h["weight_decay"] * p), (m, v)

    return each_leaf(step)


def radam(h):
    """The authors' code, which here makes the steps of SGD until it is rectified."""
    b1, b2, eta = h["b1"], h["b2"], h["learning_rate"]

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        most, u = 2 / (1 - b2) - 1, m / (1 - b1**t)
        r = most - 2 * t * b2**t / (1 - b2**t)
        if r >= 5:
            square = (r - 4) * (r - 2) * most / ((most - 4) * (most - 2) * r)
            u = u * np.sqrt(square * (1 - b2**t)) / (np.sqrt(v) + h["eps"])
        elif not h["sgd_start"]:
            u = 0.0
        return p * (1 - eta * h["weight_decay"]) - eta * u, (m, v)

    return each_leaf(step)


def rmsprop(h):
    """Graves, with the root's eps outside, and decoupled decay."""
    b2 = h["b2"]

    def step(p, g, t, memory):
        m, n, d = (0.0, 0.0, 0.0) if memory is None else memory
        m, n = b2 * m + (1 - b2) * g, b2 * n + (1 - b2) * g * g
        v = n - m * m if h["centered"] else n
        u = g / (np.sqrt(v) + h["eps"])
        d = (h["momentum"] or 0) * d + u
        u = u + h["momentum"] * d if h["nesterov"] else d
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, n, d)

    return each_leaf(step)


def adagrad(h):
    def step(p, g, t, memory):
        s = (h["initial_square"] if memory is None else memory) + g * g
        u = g / np.sqrt(s + h["eps"])
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), s

    return each_leaf(step)


def amsgrad(h):
    """Algorithm 2 where nothing is corrected."""
    b1, b2 = h["b1"], h["b2"]

    def step(p, g, t, memory):
        m, v, most = (0.0, 0.0, 0.0) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        first, second = (1 - b1**t, 1 - b2**t) if h["bias_correction"] else (1, 1)
        most = np.maximum(most, v / second)
        u = m / first / (np.sqrt(most) + h["eps"])
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, v, most)

    return each_leaf(step)


def adamax(h):
    b1 = h["b1"]

    def step(p, g, t, memory):
        m, most = (0.0, 0.0) if memory is None else memory
        m = b1 * m + (1 - b1) * g
        most = np.maximum(h["b2"] * most, np.abs(g) + h["eps"])
        u = m / (1 - b1**t) / most
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, most)

    return each_leaf(step)


def simplified_ademamix(h):
    """The authors' code, with its eps and its corrected divisor."""
    b2 = h["b2"]

    def step(p, g, t, memory):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = h["b1"] * m + g, b2 * v + (1 - b2) * g * g
        corrected = np.sqrt(1 - b2**t)
        u = (h["alpha"] * g + m) / (np.sqrt(v) + h["eps"] * corrected) * corrected
        return p - h["learning_rate"] * (u + h["weight_decay"] * p), (m, v)

    return each_leaf(step)


def signum(h):
    def step(p, g, t, memory):
        m = h["b1"] * (0.0 if memory is None else memory) + (1 - h["b1"]) * g
        return p - h["learning_rate"] * (np.sign(m) + h["weight_decay"] * p), m

    return each_leaf(step)


REFERENCES = {
    "adagrad": adagrad,
    "adamax": adamax,
    "ademamix": ademamix,
    "adopt": adopt,
    "amsgrad": amsgrad,
    "radam": radam,
    "rmsprop": rmsprop,
    "signum": signum,
    "simplified_ademamix": simplified_ademamix,
    "yogi": yogi,
}
