"""Links, each with SGD of momentum 0.9 beside it, in float64 NumPy."""

import numpy as np

from tests.conformance.references import walking


def momentum(h):
    """One step of SGD: (p, g, t, m) -> (p, m)."""

    def step(p, g, t, m):
        m = g + 0.9 * (0.0 if m is None else m)
        return p - h["learning_rate"] * m, m

    return step


def centralize_gradients(h):
    plain = momentum(h)

    def step(p, g, t, m):
        return plain(p, g - g.mean(0), t, m)

    return walking.each_matrix(step, walking.each_leaf(plain))


def clip_coordinates(h):
    plain = momentum(h)

    def step(p, g, t, m):
        # The default share, whose product with a small number of entries is exact.
        above = np.sort(np.abs(g), axis=None)[::-1][int(h["fraction"] * g.size) :]
        return plain(p, np.clip(g, -above.max(initial=0), above.max(initial=0)), t, m)

    return walking.each_leaf(step)


def normalize_and_project(h):
    plain = momentum(h)

    def step(p, g, t, memory):
        rho, m = (np.linalg.norm(p), None) if memory is None else memory
        v, m = plain(p, g, t, m)
        return rho * v / np.linalg.norm(v), (rho, m)

    return walking.each_matrix(step, walking.each_leaf(plain))


def qk_clip(h):
    """With the two heads of the suite, at logits of 50 and 400."""
    gamma = np.minimum(1, h["threshold"] / np.array([[50.0], [400.0]])) ** 0.5

    def of_attention(p, g, t, m):
        p, m = momentum(h)(p, g, t, m)
        return gamma * p, m

    def part(tree, own):
        return {name: x for name, x in tree.items() if (name == "attention") == own}

    def reference(params, grads):
        halves = [
            walking.each_leaf(step)(part(params, own), [part(g, own) for g in grads])
            for step, own in ((momentum(h), False), (of_attention, True))
        ]
        return [{**rest, **heads} for rest, heads in zip(*halves, strict=True)]

    return reference


REFERENCES = {
    "centralize_gradients": centralize_gradients,
    "clip_coordinates": clip_coordinates,
    "normalize_and_project": normalize_and_project,
    "qk_clip": qk_clip,
}
