"""Links, each with SGD of momentum 0.9 beside it, in float64 NumPy."""

import jax
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


def denoise_subspace(h):
    """The mode drop_low, by a decomposition of all iterates of a window in full."""

    def flat(tree):
        return np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])

    def reference(params, grads):
        iterates, basis, m, points = [], np.zeros((0, flat(params).size)), 0.0, []
        for t, g in enumerate(map(flat, grads)):
            iterates.append(flat(params))
            if t and t % h["window"] == 0:
                last = np.stack(iterates[-h["window"] :])
                _, s, v = np.linalg.svd(last - last.mean(0), full_matrices=False)
                share = np.cumsum(s**2) / np.sum(s**2)
                basis = v[np.argmax(share > 1 - h["nu"]) + 1 : h["window"] - 1]
            m = g - basis.T @ (basis @ g) + 0.9 * m
            leaves, tree = jax.tree.flatten(params)
            cuts = np.cumsum([x.size for x in leaves])[:-1]
            steps = np.split(h["learning_rate"] * m, cuts)
            params = tree.unflatten(
                x - u.reshape(x.shape) for x, u in zip(leaves, steps, strict=True)
            )
            points.append(params)
        return points

    return reference


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
    "denoise_subspace": denoise_subspace,
    "normalize_and_project": normalize_and_project,
    "qk_clip": qk_clip,
}
