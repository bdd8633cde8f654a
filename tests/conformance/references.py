"""Float64 NumPy transcriptions of the rows: parameters after each gradient.

Each takes the arguments of its row and returns the `reference` of `testing.check`.
"""

import inspect

import jax
import numpy as np

JORDAN = (3.4445, -4.7750, 2.0315)


def of_row(row):
    """Returns the reference of a catalogue row, with the row's own arguments."""
    signature = inspect.signature(row.build).parameters
    defaults = {name: parameter.default for name, parameter in signature.items()}
    return REFERENCES[row.name]({**defaults, **row.defaults})


def each_leaf(step):
    """Runs step(leaf history) over a tree: (p, g, t, memory) -> (p, memory)."""

    def reference(params, grads):
        leaves, tree = jax.tree.flatten(params)
        memories, points = [None] * len(leaves), []
        for t, gradient in enumerate(grads, start=1):
            done = [
                step(p, g, t, memory)
                for p, g, memory in zip(
                    leaves, jax.tree.leaves(gradient), memories, strict=True
                )
            ]
            leaves, memories = [p for p, _ in done], [memory for _, memory in done]
            points.append(tree.unflatten(leaves))
        return points

    return reference


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


def muon(h):
    """Leaves called 'kernel' are matrices on their last two axes; a conv is one."""
    vectors = adamw(
        {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
        | {"weight_decay": 1e-4}
    )

    def polar(x):
        x = x / max(np.linalg.norm(x), 1e-300)
        a, b, c = JORDAN
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    def step(p, g, t, memory):
        m = h["b1"] * (0.0 if memory is None else memory) + (1 - h["b1"]) * g
        mixed = h["b1"] * m + (1 - h["b1"]) * g
        rows = p.size // p.shape[-1] if p.ndim == 4 else p.shape[-2]
        stack = mixed.reshape(-1, rows, p.shape[-1]) if p.size else []
        scale = max(1.0, p.shape[-1] / max(rows, 1)) ** 0.5
        u = scale * np.reshape([polar(x) for x in stack], p.shape)
        return p - h["learning_rate"] * u, m

    def reference(params, grads):
        names = jax.tree.map_with_path(lambda path, _: path[-1].key, params)
        matrices, rest = each_leaf(step), vectors

        def only(tree, kernels):
            keep = lambda name, x: x if (name == "kernel") == kernels else None  # noqa: E731
            return jax.tree.map(keep, names, tree)

        halves = [
            run(only(params, kernels), [only(g, kernels) for g in grads])
            for run, kernels in ((matrices, True), (rest, False))
        ]
        return [
            jax.tree.map(
                lambda a, b: b if a is None else a, *both, is_leaf=lambda x: x is None
            )
            for both in zip(*halves, strict=True)
        ]

    return reference


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


def inner_product(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.sum(x * y)) for x, y in pairs)


REFERENCES = {
    "adamomentum": adamomentum,
    "adamw": adamw,
    "fedhyper": fedhyper,
    "hypergradient": hypergradient,
    "lion": lion,
    "muon": muon,
    "nadamw": nadamw,
    "sgd": sgd,
}
